package peers;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.Map;
import java.util.Properties;

/**
 * What the benchmark asks of a peer: the one argument of each program, as JSON.
 *
 * @param servers the broker's address
 * @param content topic of the events
 * @param consent topic of the consent states
 * @param output topic of the forwarded records; the consumer group has the same name
 * @param partitions of each topic
 * @param directory for state, to be used by this run only
 * @param settings of the clients, by the client that they are for
 */
record Task(
    String servers,
    String content,
    String consent,
    String output,
    int partitions,
    String directory,
    Map<String, Map<String, Object>> settings) {

  static Task parse(String[] arguments) throws IOException {
    return new ObjectMapper().readValue(arguments[0], Task.class);
  }

  /** The settings for one client, with the address of the broker. */
  Properties properties(String client) {
    Properties properties = new Properties();
    properties.put("bootstrap.servers", servers);
    settings.get(client).forEach((key, value) -> properties.put(key, value.toString()));
    return properties;
  }

  /** Tells the benchmark how fast the table was read. */
  static void reportTable(long records, double seconds) {
    System.out.printf("{\"table_records\": %d, \"table_seconds\": %s}%n", records, seconds);
    System.out.flush();
  }
}
