package interop;

import com.alibaba.fastjson.JSONObject;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Request and reply: producers that ask, and consumers that answer each message with its body in capitals. */
final class Replies {
    private Replies() {
    }

    static void register() {
        Driver.command("request", Replies::request);
        Driver.command("responder", Replies::start);
    }

    private static Object request(JSONObject from) throws Exception {
        DefaultMQProducer producer = Driver.client(from, DefaultMQProducer.class);
        Message question = Texts.message(from.getString("topic"), from.getJSONObject("message"));
        CompletableFuture<Message> future = new CompletableFuture<>();
        // Not the form that waits: that of 5.3.3 ends when the question has been sent.
        producer.request(question, new RequestCallback() {
            @Override
            public void onSuccess(Message message) {
                if (message != null) { // since 4.9.8 it is also called when the question has been sent
                    future.complete(message);
                }
            }

            @Override
            public void onException(Throwable error) {
                future.completeExceptionally(error);
            }
        }, from.getLongValue("timeout"));
        Message reply = future.get(from.getLongValue("timeout") + 5000, TimeUnit.MILLISECONDS);
        JSONObject out = new JSONObject();
        out.put("body", new String(reply.getBody(), StandardCharsets.UTF_8));
        out.put("props", reply.getProperties());
        return out;
    }

    private static Object start(JSONObject from) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(from.getString("group") + "-replies");
        Texts.configure(producer, from);
        producer.start();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(from.getString("group"));
        Texts.configure(consumer, from);
        consumer.subscribe(from.getString("topic"), "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                String body = new String(message.getBody(), StandardCharsets.UTF_8).toUpperCase();
                try {
                    producer.send(MessageUtil.createReplyMessage(message, body.getBytes(StandardCharsets.UTF_8)));
                } catch (Exception error) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Driver.keep(from.getString("name"), consumer, () -> {
            consumer.shutdown();
            producer.shutdown();
        });
        return consumer.buildMQClientId();
    }
}
