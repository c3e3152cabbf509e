package peers;

import java.io.IOException;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.GlobalKTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.Stores;

/**
 * A stream joined with a GlobalKTable: not in the order of timestamps, and not in step with the
 * stream. Its store is filled with the bytes of the topic, so a look-up parses the consent record.
 */
final class GlobalTableJoin {
  private GlobalTableJoin() {}

  public static void main(String[] arguments) throws IOException {
    Task task = Task.parse(arguments);
    StreamsBuilder builder = new StreamsBuilder();
    GlobalKTable<Bytes, byte[]> consents =
        builder.globalTable(
            task.consent(),
            Materialized.<Bytes, byte[]>as(Stores.inMemoryKeyValueStore(Streams.STORE))
                .withKeySerde(Streams.KEY)
                .withValueSerde(Streams.VALUE));
    builder.stream(task.content(), Consumed.with(Streams.KEY, Streams.VALUE))
        .join(
            consents,
            (subject, post) -> subject,
            (post, consent) -> Streams.decide(post, Decision.permitted(consent)))
        .filter((subject, post) -> post != null)
        .to(task.output(), Produced.with(Streams.KEY, Streams.VALUE));
    Streams.run(task, builder);
  }
}
