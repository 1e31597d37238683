package interop;

import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.lang.reflect.Field;
import java.util.ArrayList;
import java.util.List;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.impl.consumer.DefaultMQPushConsumerImpl;
import org.apache.rocketmq.client.impl.consumer.PullAPIWrapper;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;

/** Push consumers that keep what they were given, with the time they were given it. */
final class PushConsumers {
    private PushConsumers() {
    }

    static void register() {
        Driver.command("push", PushConsumers::start);
        Driver.command("received", PushConsumers::received);
        Driver.command("assigned", PushConsumers::assigned);
        Driver.command("pullsFrom", PushConsumers::pullsFrom);
        Driver.command("suspend", arguments -> {
            DefaultMQPushConsumer consumer = Driver.client(arguments, Push.class).consumer;
            if (arguments.getBooleanValue("on")) {
                consumer.suspend();
            } else {
                consumer.resume();
            }
            return null;
        });
    }

    private static final class Push {
        final DefaultMQPushConsumer consumer;
        final List<JSONObject> received = new ArrayList<>();
        final int failures;

        Push(DefaultMQPushConsumer consumer, int failures) {
            this.consumer = consumer;
            this.failures = failures;
        }

        /** Keeps the messages; whether they are to be taken as consumed. */
        synchronized boolean take(List<MessageExt> messages) {
            long at = Texts.micros();
            boolean done = true;
            for (MessageExt message : messages) {
                JSONObject json = Texts.json(message);
                json.put("receivedAt", at);
                json.put("thread", Thread.currentThread().getName());
                received.add(json);
                done &= message.getReconsumeTimes() >= failures;
            }
            notifyAll();
            return done;
        }

        synchronized JSONArray await(int count, int from, long timeout) throws InterruptedException {
            long limit = System.currentTimeMillis() + timeout;
            for (long left = timeout; received.size() < count && left > 0; left = limit - System.currentTimeMillis()) {
                wait(left);
            }
            return new JSONArray(new ArrayList<>(received.subList(Math.min(from, received.size()), received.size())));
        }
    }

    private static Object start(JSONObject from) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(from.getString("group"));
        Texts.configure(consumer, from);
        Texts.setEnum(consumer, "setMessageModel", from.getBooleanValue("broadcast") ? "BROADCASTING" : "CLUSTERING");
        if (from.containsKey("where")) {
            consumer.setConsumeFromWhere(ConsumeFromWhere.valueOf("CONSUME_FROM_" + from.getString("where")));
        }
        if (from.containsKey("timestamp")) {
            consumer.setConsumeTimestamp(from.getString("timestamp"));
        }
        if (from.containsKey("threads")) {
            consumer.setConsumeThreadMin(from.getIntValue("threads"));
            consumer.setConsumeThreadMax(from.getIntValue("threads"));
        }
        if (from.containsKey("consumeBatch")) {
            consumer.setConsumeMessageBatchMaxSize(from.getIntValue("consumeBatch"));
        }
        if (from.containsKey("maxReconsume")) {
            consumer.setMaxReconsumeTimes(from.getIntValue("maxReconsume"));
        }
        if (from.containsKey("sql")) {
            consumer.subscribe(from.getString("topic"), MessageSelector.bySql(from.getString("sql")));
        } else {
            consumer.subscribe(from.getString("topic"), from.containsKey("tags") ? from.getString("tags") : "*");
        }
        Push push = new Push(consumer, from.getIntValue("failures"));
        if (from.getBooleanValue("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) ->
                push.take(messages) ? ConsumeOrderlyStatus.SUCCESS : ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT);
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                if (from.containsKey("delayLevel")) {
                    context.setDelayLevelWhenNextConsume(from.getIntValue("delayLevel"));
                }
                return push.take(messages) ? ConsumeConcurrentlyStatus.CONSUME_SUCCESS
                    : ConsumeConcurrentlyStatus.RECONSUME_LATER;
            });
        }
        consumer.start();
        Driver.keep(from.getString("name"), push, consumer::shutdown);
        return consumer.buildMQClientId();
    }

    /** What has been received from index `from` on, once there are `count` in all or `timeout` ms are over. */
    private static Object received(JSONObject from) throws Exception {
        return Driver.client(from, Push.class).await(
            from.getIntValue("count"), from.getIntValue("from"), from.getLongValue("timeout"));
    }

    private static Object assigned(JSONObject from) {
        DefaultMQPushConsumer consumer = Driver.client(from, Push.class).consumer;
        return Texts.queues(new ArrayList<>(
            consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet()));
    }

    /** The id of the broker that the next pull of the queue goes to. */
    private static Object pullsFrom(JSONObject from) throws Exception {
        DefaultMQPushConsumerImpl consumer = Driver.client(from, Push.class).consumer.getDefaultMQPushConsumerImpl();
        Field wrapper = DefaultMQPushConsumerImpl.class.getDeclaredField("pullAPIWrapper");
        wrapper.setAccessible(true);
        return ((PullAPIWrapper) wrapper.get(consumer)).recalculatePullFromWhichNode(Texts.queue(from));
    }
}
