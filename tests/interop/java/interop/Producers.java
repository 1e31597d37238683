package interop;

import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedWriter;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.MessageQueueSelector;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Everything that sends. */
final class Producers {
    private static final MessageQueueSelector BY_NUMBER =
        (queues, message, argument) -> queues.get(((Number) argument).intValue() % queues.size());

    private Producers() {
    }

    static void register() {
        Driver.command("producer", Producers::start);
        Driver.command("send", Producers::send);
        Driver.command("sendMany", Producers::sendMany);
        Driver.command("batch", Producers::batch);
        Driver.command("transaction", Producers::transaction);
        Driver.command("flow", Producers::startFlow);
        Driver.command("flowState", arguments -> Driver.client(arguments, Flow.class).state());
        Driver.command("stopFlow", Producers::stopFlow);
    }

    private static Object start(JSONObject from) throws Exception {
        String group = from.getString("group");
        DefaultMQProducer producer = from.getBooleanValue("transactional")
            ? new TransactionMQProducer(group) : new DefaultMQProducer(group);
        Texts.configure(producer, from);
        if (from.containsKey("timeout")) {
            producer.setSendMsgTimeout(from.getIntValue("timeout"));
        }
        if (from.containsKey("retries")) {
            producer.setRetryTimesWhenSendFailed(from.getIntValue("retries"));
            producer.setRetryTimesWhenSendAsyncFailed(from.getIntValue("retries"));
        }
        if (from.containsKey("queues")) {
            producer.setDefaultTopicQueueNums(from.getIntValue("queues"));
        }
        if (from.containsKey("compressOver")) {
            producer.setCompressMsgBodyOverHowmuch(from.getIntValue("compressOver"));
        }
        if (from.containsKey("maxSize")) {
            producer.setMaxMessageSize(from.getIntValue("maxSize"));
        }
        producer.setRetryAnotherBrokerWhenNotStoreOK(from.getBooleanValue("retryAnother"));
        if (producer instanceof TransactionMQProducer) {
            ((TransactionMQProducer) producer).setTransactionListener(new ByProperty());
        }
        producer.start();
        Driver.keep(from.getString("name"), producer, producer::shutdown);
        return producer.buildMQClientId();
    }

    /** Decides local transactions as the message itself says: property `local`, and property `check` when asked again. */
    private static final class ByProperty implements TransactionListener {
        @Override
        public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return LocalTransactionState.valueOf(message.getUserProperty("local"));
        }

        @Override
        public LocalTransactionState checkLocalTransaction(MessageExt message) {
            return LocalTransactionState.valueOf(message.getUserProperty("check"));
        }
    }

    private static Object transaction(JSONObject from) throws Exception {
        TransactionMQProducer producer = Driver.client(from, TransactionMQProducer.class);
        return Texts.json(producer.sendMessageInTransaction(
            Texts.message(from.getString("topic"), from.getJSONObject("message")), null));
    }

    private static JSONObject send(DefaultMQProducer producer, Message message, JSONObject how) throws Exception {
        String mode = how.containsKey("mode") ? how.getString("mode") : "sync";
        long sentAt = Texts.micros();
        SendResult result = null;
        if (mode.equals("sync")) {
            result = how.containsKey("broker") ? producer.send(message, Texts.queue(how))
                : how.containsKey("select") ? producer.send(message, BY_NUMBER, how.getInteger("select"))
                : producer.send(message);
        } else if (mode.equals("async")) {
            CompletableFuture<SendResult> future = new CompletableFuture<>();
            SendCallback callback = callback(future);
            if (how.containsKey("broker")) {
                producer.send(message, Texts.queue(how), callback);
            } else if (how.containsKey("select")) {
                producer.send(message, BY_NUMBER, how.getInteger("select"), callback);
            } else {
                producer.send(message, callback);
            }
            result = future.get(30, TimeUnit.SECONDS);
        } else if (how.containsKey("broker")) {
            producer.sendOneway(message, Texts.queue(how));
        } else if (how.containsKey("select")) {
            producer.sendOneway(message, BY_NUMBER, how.getInteger("select"));
        } else {
            producer.sendOneway(message);
        }
        JSONObject out = result == null ? new JSONObject() : Texts.json(result);
        out.put("sentAt", sentAt);
        return out;
    }

    private static SendCallback callback(CompletableFuture<SendResult> future) {
        return new SendCallback() {
            @Override
            public void onSuccess(SendResult result) {
                future.complete(result);
            }

            @Override
            public void onException(Throwable error) {
                future.completeExceptionally(error);
            }
        };
    }

    private static Object send(JSONObject from) throws Exception {
        DefaultMQProducer producer = Driver.client(from, DefaultMQProducer.class);
        return send(producer, Texts.message(from.getString("topic"), from.getJSONObject("message")), from);
    }

    /** `count` messages with the bodies PREFIX0, PREFIX1, …; asynchronous ones are all in flight at once. */
    private static Object sendMany(JSONObject from) throws Exception {
        DefaultMQProducer producer = Driver.client(from, DefaultMQProducer.class);
        boolean async = "async".equals(from.getString("mode"));
        JSONArray results = new JSONArray();
        List<CompletableFuture<SendResult>> flying = new ArrayList<>();
        for (int i = 0; i < from.getIntValue("count"); i++) {
            JSONObject content = new JSONObject();
            if (from.containsKey("message")) {
                content.putAll(from.getJSONObject("message"));
            }
            content.put("body", from.getString("prefix") + i);
            Message message = Texts.message(from.getString("topic"), content);
            if (async) {
                CompletableFuture<SendResult> future = new CompletableFuture<>();
                producer.send(message, callback(future));
                flying.add(future);
            } else {
                results.add(send(producer, message, from));
            }
        }
        for (CompletableFuture<SendResult> future : flying) {
            results.add(Texts.json(future.get(30, TimeUnit.SECONDS)));
        }
        return results;
    }

    private static Object batch(JSONObject from) throws Exception {
        DefaultMQProducer producer = Driver.client(from, DefaultMQProducer.class);
        List<Message> messages = new ArrayList<>();
        for (Object each : from.getJSONArray("messages")) {
            messages.add(Texts.message(from.getString("topic"), (JSONObject) each));
        }
        if (from.containsKey("broker")) {
            return Texts.json(producer.send(messages, Texts.queue(from)));
        }
        return Texts.json(producer.send(messages));
    }

    /**
     * Threads that send without pause and write down what the broker acknowledged, one line a message, flushed before
     * the next is sent: key, msgId, offsetMsgId, broker, queue, offset, status. Statuses other than SEND_OK (stored, but
     * not flushed or replicated in time) are written too: what they promise is for the reader to decide.
     */
    private static final class Flow {
        private final DefaultMQProducer producer;
        private final JSONObject from;
        private final BufferedWriter file;
        private final List<Thread> threads = new ArrayList<>();
        private final AtomicLong next = new AtomicLong();
        private final AtomicLong acknowledged = new AtomicLong();
        private final AtomicLong failed = new AtomicLong();
        private volatile String lastError;
        private volatile boolean stopping;

        Flow(DefaultMQProducer producer, JSONObject from) throws Exception {
            this.producer = producer;
            this.from = from;
            this.file = Files.newBufferedWriter(Paths.get(from.getString("file")), StandardOpenOption.CREATE,
                StandardOpenOption.APPEND);
            int count = from.containsKey("threads") ? from.getIntValue("threads") : 4;
            for (int i = 0; i < count; i++) {
                Thread thread = new Thread(this::run);
                thread.setDaemon(true);
                threads.add(thread);
            }
            threads.forEach(Thread::start);
        }

        private void run() {
            JSONObject content = new JSONObject();
            content.put("size", from.containsKey("size") ? from.getIntValue("size") : 128);
            long limit = from.containsKey("limit") ? from.getLongValue("limit") : Long.MAX_VALUE;
            long pause = from.getLongValue("pause");
            for (long number = next.getAndIncrement(); !stopping && number < limit; number = next.getAndIncrement()) {
                String key = from.getString("keys") + number;
                content.put("keys", key);
                content.put("seed", number);
                try {
                    SendResult result = producer.send(Texts.message(from.getString("topic"), content));
                    MessageQueue queue = result.getMessageQueue();
                    String line = String.join(" ", key, result.getMsgId(), result.getOffsetMsgId(), queue.getBrokerName(),
                        String.valueOf(queue.getQueueId()), String.valueOf(result.getQueueOffset()),
                        result.getSendStatus().name());
                    synchronized (file) {
                        file.write(line);
                        file.newLine();
                        file.flush();
                    }
                    if (result.getSendStatus() == SendStatus.SEND_OK) {
                        acknowledged.incrementAndGet();
                    }
                    rest(pause);
                } catch (Exception error) {
                    lastError = error.toString();
                    failed.incrementAndGet();
                    rest(Math.max(pause, 20)); // a refused connection fails at once; do not spin on it
                }
            }
        }

        private static void rest(long millis) {
            try {
                TimeUnit.MILLISECONDS.sleep(millis);
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
        }

        JSONObject state() {
            JSONObject out = new JSONObject();
            out.put("acknowledged", acknowledged.get());
            out.put("failed", failed.get());
            out.put("lastError", lastError);
            out.put("running", threads.stream().anyMatch(Thread::isAlive));
            return out;
        }

        JSONObject stop() throws Exception {
            stopping = true;
            for (Thread thread : threads) {
                thread.join(30_000);
            }
            file.close();
            return state();
        }
    }

    private static Object startFlow(JSONObject from) throws Exception {
        Flow flow = new Flow(Driver.client(renamed(from, "producer"), DefaultMQProducer.class), from);
        Driver.keep(from.getString("name"), flow, flow::stop);
        return null;
    }

    private static JSONObject renamed(JSONObject from, String key) {
        JSONObject out = new JSONObject();
        out.put("name", from.getString(key));
        return out;
    }

    private static Object stopFlow(JSONObject from) throws Exception {
        Flow flow = Driver.client(from, Flow.class);
        Driver.CLIENTS.remove(from.getString("name"));
        Driver.CLOSERS.remove(from.getString("name"));
        return flow.stop();
    }
}
