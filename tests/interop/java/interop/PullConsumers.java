package interop;

import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullCallback;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Lite pull consumers and the older pull consumers. */
@SuppressWarnings("deprecation")
final class PullConsumers {
    private PullConsumers() {
    }

    static void register() {
        Driver.command("lite", PullConsumers::startLite);
        Driver.command("poll", PullConsumers::poll);
        Driver.command("seek", arguments -> {
            lite(arguments).seek(Texts.queue(arguments), arguments.getLongValue("offset"));
            return null;
        });
        Driver.command("committed", arguments -> lite(arguments).committed(Texts.queue(arguments)));
        Driver.command("commit", arguments -> {
            lite(arguments).commitSync();
            return null;
        });
        Driver.command("offsetForTimestamp", arguments ->
            lite(arguments).offsetForTimestamp(Texts.queue(arguments), arguments.getLongValue("timestamp")));
        Driver.command("liteQueues", arguments ->
            Texts.queues(lite(arguments).fetchMessageQueues(arguments.getString("topic"))));
        Driver.command("puller", PullConsumers::startPuller);
        Driver.command("pull", PullConsumers::pull);
        Driver.command("pullQueues", arguments ->
            Texts.queues(puller(arguments).fetchSubscribeMessageQueues(arguments.getString("topic"))));
        Driver.command("balanced", arguments ->
            Texts.queues(puller(arguments).fetchMessageQueuesInBalance(arguments.getString("topic"))));
        Driver.command("updateOffset", arguments -> {
            DefaultMQPullConsumer consumer = puller(arguments);
            MessageQueue queue = Texts.queue(arguments);
            consumer.updateConsumeOffset(queue, arguments.getLongValue("offset"));
            consumer.getOffsetStore().persist(queue);
            return null;
        });
        Driver.command("fetchOffset", arguments -> puller(arguments).fetchConsumeOffset(Texts.queue(arguments), true));
    }

    private static DefaultLitePullConsumer lite(JSONObject arguments) {
        return Driver.client(arguments, DefaultLitePullConsumer.class);
    }

    private static DefaultMQPullConsumer puller(JSONObject arguments) {
        return Driver.client(arguments, DefaultMQPullConsumer.class);
    }

    private static Object startLite(JSONObject from) throws Exception {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(from.getString("group"));
        Texts.configure(consumer, from);
        Texts.setEnum(consumer, "setMessageModel", from.getBooleanValue("broadcast") ? "BROADCASTING" : "CLUSTERING");
        consumer.setAutoCommit(!Boolean.FALSE.equals(from.getBoolean("autoCommit")));
        if (from.containsKey("where")) {
            consumer.setConsumeFromWhere(ConsumeFromWhere.valueOf("CONSUME_FROM_" + from.getString("where")));
        }
        if (from.containsKey("timestamp")) {
            consumer.setConsumeTimestamp(from.getString("timestamp"));
        }
        if (from.containsKey("pullBatch")) {
            consumer.setPullBatchSize(from.getIntValue("pullBatch"));
        }
        if (from.containsKey("sql")) {
            consumer.subscribe(from.getString("topic"), MessageSelector.bySql(from.getString("sql")));
        } else if (!from.containsKey("assign")) {
            consumer.subscribe(from.getString("topic"), from.containsKey("tags") ? from.getString("tags") : "*");
        }
        consumer.start();
        if (from.containsKey("assign")) {
            List<MessageQueue> queues = new ArrayList<>();
            for (Object each : from.getJSONArray("assign")) {
                queues.add(Texts.queue((JSONObject) each));
            }
            consumer.assign(queues);
        }
        Driver.keep(from.getString("name"), consumer, consumer::shutdown);
        return consumer.buildMQClientId();
    }

    /** Polls until there are `count` messages or `timeout` ms are over. */
    private static Object poll(JSONObject from) {
        DefaultLitePullConsumer consumer = lite(from);
        long limit = System.currentTimeMillis() + from.getLongValue("timeout");
        JSONArray out = new JSONArray();
        for (long left = 1; left > 0 && out.size() < from.getIntValue("count"); left = limit - System.currentTimeMillis()) {
            List<MessageExt> messages = consumer.poll(Math.max(1, Math.min(200, limit - System.currentTimeMillis())));
            out.addAll(Texts.messages(messages));
        }
        return out;
    }

    private static Object startPuller(JSONObject from) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(from.getString("group"));
        Texts.configure(consumer, from);
        if (from.containsKey("topic")) {
            consumer.registerMessageQueueListener(from.getString("topic"), null);
        }
        if (from.containsKey("suspend")) {
            consumer.setBrokerSuspendMaxTimeMillis(from.getLongValue("suspend"));
        }
        consumer.start();
        Driver.keep(from.getString("name"), consumer, consumer::shutdown);
        return consumer.buildMQClientId();
    }

    private static Object pull(JSONObject from) throws Exception {
        DefaultMQPullConsumer consumer = puller(from);
        MessageQueue queue = Texts.queue(from);
        String expression = from.containsKey("tags") ? from.getString("tags") : "*";
        long offset = from.getLongValue("offset");
        int max = from.containsKey("max") ? from.getIntValue("max") : 32;
        PullResult result;
        if (from.getBooleanValue("block")) {
            result = consumer.pullBlockIfNotFound(queue, expression, offset, max);
        } else if (from.containsKey("sql")) {
            result = consumer.pull(queue, MessageSelector.bySql(from.getString("sql")), offset, max);
        } else if (from.getBooleanValue("async")) {
            CompletableFuture<PullResult> future = new CompletableFuture<>();
            consumer.pull(queue, expression, offset, max, new PullCallback() {
                @Override
                public void onSuccess(PullResult got) {
                    future.complete(got);
                }

                @Override
                public void onException(Throwable error) {
                    future.completeExceptionally(error);
                }
            });
            result = future.get(30, TimeUnit.SECONDS);
        } else {
            result = consumer.pull(queue, expression, offset, max);
        }
        JSONObject out = new JSONObject();
        out.put("status", result.getPullStatus().name());
        out.put("next", result.getNextBeginOffset());
        out.put("min", result.getMinOffset());
        out.put("max", result.getMaxOffset());
        out.put("receivedAt", Texts.micros());
        out.put("messages", result.getMsgFoundList() == null ? new JSONArray() : Texts.messages(result.getMsgFoundList()));
        return out;
    }
}
