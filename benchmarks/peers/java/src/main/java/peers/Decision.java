package peers;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Set;

/** The policy of benchmarks/workload.py, by hand; peers/decision.py is the same in Python. */
final class Decision {
  /** What may be forwarded of a person. */
  static final byte NOTHING = 0;
  static final byte PUBLIC_POSTS = 1;
  static final byte EVERYTHING = 2;

  private static final JsonFactory JSON = new JsonFactory();
  private static final String PURPOSE = "ai-training";
  private static final Set<String> SUSPENDED =
      Set.of("AT", "BE", "DE", "ES", "FR", "IE", "IT", "NL", "PL", "SE");
  private static final Set<String> KINDS = Set.of("post", "article");

  private Decision() {}

  /** What a consent record permits; what cannot be read permits nothing. */
  static byte permitted(byte[] consent) {
    if (consent == null) {
      return NOTHING;
    }
    try (JsonParser parser = JSON.createParser(consent)) {
      String jurisdiction = null;
      String choice = null;
      boolean adult = false;
      parser.nextToken();
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String field = parser.currentName();
        JsonToken value = parser.nextToken();
        switch (field) {
          case "jurisdiction" -> jurisdiction = parser.getValueAsString();
          case "adult" -> adult = value == JsonToken.VALUE_TRUE;
          case "choices" -> choice = choice(parser);
          default -> parser.skipChildren();
        }
      }
      return permitted(jurisdiction, adult, choice);
    } catch (IOException error) {
      return NOTHING;
    }
  }

  private static byte permitted(String jurisdiction, boolean adult, String choice) {
    if (!adult || jurisdiction == null || SUSPENDED.contains(jurisdiction)) {
      return NOTHING;
    }
    if (jurisdiction.equals("GB")) {
      return "granted".equals(choice) ? EVERYTHING : NOTHING;
    }
    return choice == null || choice.equals("granted") ? PUBLIC_POSTS : NOTHING;
  }

  private static String choice(JsonParser parser) throws IOException {
    String choice = null;
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      boolean ours = parser.currentName().equals(PURPOSE);
      parser.nextToken();
      if (!ours) {
        parser.skipChildren();
        continue;
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        boolean wanted = parser.currentName().equals("choice");
        parser.nextToken();
        if (wanted) {
          choice = parser.getValueAsString();
        } else {
          parser.skipChildren();
        }
      }
    }
    return choice;
  }

  /** Whether a post goes on; it is only parsed where that depends on what it is. */
  static boolean forwards(byte permitted, byte[] post) {
    return switch (permitted) {
      case EVERYTHING -> true;
      case PUBLIC_POSTS -> isPublicPost(post);
      default -> false;
    };
  }

  private static boolean isPublicPost(byte[] post) {
    try (JsonParser parser = JSON.createParser(post)) {
      boolean visible = false;
      boolean kind = false;
      parser.nextToken();
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String field = parser.currentName();
        parser.nextToken();
        switch (field) {
          case "visibility" -> visible = "public".equals(parser.getValueAsString());
          case "kind" -> kind = KINDS.contains(parser.getValueAsString());
          default -> parser.skipChildren();
        }
      }
      return visible && kind;
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }
}
