package peers;

import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.utils.Bytes;

/**
 * A loop over a consumer, a HashMap and a transactional producer. A transaction takes in as many
 * polls as fit into its time, so that commits do not hold up the loop; the consent topic is polled
 * in between. No barrier, no second look before the commit, no ledger.
 */
final class HandTuned {
  private final Task task;
  private final long transactionNanos;
  private final Map<Bytes, Byte> permitted = new HashMap<>();
  private final KafkaConsumer<byte[], byte[]> consents;
  private final KafkaConsumer<byte[], byte[]> posts;
  private final KafkaProducer<byte[], byte[]> producer;

  private HandTuned(Task task) {
    this.task = task;
    Number milliseconds = (Number) task.settings().get("loop").get("transaction.ms");
    transactionNanos = Duration.ofMillis(milliseconds.longValue()).toNanos();
    ByteArrayDeserializer bytes = new ByteArrayDeserializer();
    consents = new KafkaConsumer<>(task.properties("consumer"), bytes, bytes);
    var consumer = task.properties("consumer");
    consumer.put("group.id", task.output());
    posts = new KafkaConsumer<>(consumer, bytes, bytes);
    var settings = task.properties("producer");
    settings.put("transactional.id", task.output());
    producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
  }

  public static void main(String[] arguments) throws IOException {
    HandTuned loop = new HandTuned(Task.parse(arguments));
    AtomicBoolean running = new AtomicBoolean(true);
    Thread main = Thread.currentThread();
    Thread end =
        new Thread(
            () -> {
              running.set(false);
              try {
                main.join(5_000);
              } catch (InterruptedException ignored) {
                Thread.currentThread().interrupt();
              }
            });
    Runtime.getRuntime().addShutdownHook(end);
    loop.readTable();
    loop.run(running);
  }

  private void readTable() {
    List<TopicPartition> partitions = new ArrayList<>();
    for (int number = 0; number < task.partitions(); number++) {
      partitions.add(new TopicPartition(task.consent(), number));
    }
    consents.assign(partitions);
    consents.seekToBeginning(partitions);
    Map<TopicPartition, Long> ends = consents.endOffsets(partitions);
    long began = System.nanoTime();
    long records = 0;
    while (partitions.stream().anyMatch(p -> consents.position(p) < ends.get(p))) {
      records += apply(consents.poll(Duration.ofMillis(100)));
    }
    Task.reportTable(records, (System.nanoTime() - began) / 1e9);
  }

  private int apply(ConsumerRecords<byte[], byte[]> records) {
    for (ConsumerRecord<byte[], byte[]> record : records) {
      permitted.put(Bytes.wrap(record.key()), Decision.permitted(record.value()));
    }
    return records.count();
  }

  private void run(AtomicBoolean running) {
    posts.subscribe(List.of(task.content()));
    producer.initTransactions();
    Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
    long begun = 0;
    while (running.get()) {
      ConsumerRecords<byte[], byte[]> records = posts.poll(Duration.ofMillis(10));
      apply(consents.poll(Duration.ZERO));
      if (!records.isEmpty()) {
        if (offsets.isEmpty()) {
          producer.beginTransaction();
          begun = System.nanoTime();
        }
        forward(records);
        offsets.putAll(records.nextOffsets());
      }
      if (!offsets.isEmpty() && System.nanoTime() - begun >= transactionNanos) {
        producer.sendOffsetsToTransaction(offsets, posts.groupMetadata());
        producer.commitTransaction();
        offsets.clear();
      }
    }
    posts.close();
    producer.close(Duration.ofSeconds(1));
    consents.close();
  }

  private void forward(ConsumerRecords<byte[], byte[]> records) {
    for (ConsumerRecord<byte[], byte[]> record : records) {
      byte person = permitted.getOrDefault(Bytes.wrap(record.key()), Decision.NOTHING);
      if (Decision.forwards(person, record.value())) {
        producer.send(
            new ProducerRecord<>(
                task.output(),
                record.partition(),
                record.timestamp(),
                record.key(),
                record.value()));
      }
    }
  }
}
