package peers;

import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.processor.StateRestoreListener;

/** What the two topologies have in common: settings, life cycle, and how fast a table is read. */
final class Streams {
  static final Serde<Bytes> KEY = Serdes.Bytes();
  static final Serde<byte[]> VALUE = Serdes.ByteArray();
  static final String STORE = "permitted";

  private Streams() {}

  /** A post that goes on, or null. */
  static byte[] decide(byte[] post, Byte permitted) {
    return Decision.forwards(permitted, post) ? post : null;
  }

  static void run(Task task, StreamsBuilder builder) {
    Properties properties = task.properties("streams");
    properties.put("application.id", task.output());
    properties.put("state.dir", task.directory());
    KafkaStreams streams = new KafkaStreams(builder.build(properties), properties);
    streams.setGlobalStateRestoreListener(new Restored());
    Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
    streams.start();
  }

  /** Reports records and seconds, from the first partition's start to each partition's end. */
  private static final class Restored implements StateRestoreListener {
    private long began;
    private long records;

    @Override
    public synchronized void onRestoreStart(TopicPartition p, String store, long from, long to) {
      if (began == 0) {
        began = System.nanoTime();
      }
    }

    @Override
    public void onBatchRestored(TopicPartition p, String store, long end, long number) {}

    @Override
    public synchronized void onRestoreEnd(TopicPartition p, String store, long total) {
      records += total;
      if (records > 0) {
        Task.reportTable(records, (System.nanoTime() - began) / 1e9);
      }
    }
  }
}
