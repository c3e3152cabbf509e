package peers;

import java.io.IOException;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Joined;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.Stores;

/**
 * A stream joined with a KTable: in the order of timestamps, with a store for each partition. The
 * store holds one byte a person, so that a look-up parses nothing.
 */
final class TableJoin {
  private TableJoin() {}

  public static void main(String[] arguments) throws IOException {
    Task task = Task.parse(arguments);
    StreamsBuilder builder = new StreamsBuilder();
    Serde<Byte> permitted =
        Serdes.serdeFrom(
            (topic, value) -> value == null ? null : new byte[] {value},
            (topic, bytes) -> bytes == null ? null : bytes[0]);
    KTable<Bytes, Byte> persons =
        builder
            .table(task.consent(), Consumed.with(Streams.KEY, Streams.VALUE))
            .mapValues(
                Decision::permitted,
                Materialized.<Bytes, Byte>as(Stores.inMemoryKeyValueStore(Streams.STORE))
                    .withKeySerde(Streams.KEY)
                    .withValueSerde(permitted));
    builder.stream(task.content(), Consumed.with(Streams.KEY, Streams.VALUE))
        .join(persons, Streams::decide, Joined.with(Streams.KEY, Streams.VALUE, permitted))
        .filter((subject, post) -> post != null)
        .to(task.output(), Produced.with(Streams.KEY, Streams.VALUE));
    Streams.run(task, builder);
  }
}
