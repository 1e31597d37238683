package interop;

import com.alibaba.fastjson.JSONObject;
import org.apache.rocketmq.client.MQAdmin;
import org.apache.rocketmq.client.producer.DefaultMQProducer;

/** What a producer can ask without sending. */
final class Queries {
    private Queries() {
    }

    static void register() {
        Driver.command("createTopic", arguments -> Texts.callPadded(admin(arguments), "createTopic",
            arguments.containsKey("key") ? arguments.getString("key") : "TBW102",
            arguments.getString("topic"), arguments.getIntValue("queues")));
        Driver.command("publishQueues", arguments ->
            Texts.queues(Driver.client(arguments, DefaultMQProducer.class)
                .fetchPublishMessageQueues(arguments.getString("topic"))));
        Driver.command("searchOffset", arguments ->
            admin(arguments).searchOffset(Texts.queue(arguments), arguments.getLongValue("timestamp")));
        Driver.command("maxOffset", arguments -> admin(arguments).maxOffset(Texts.queue(arguments)));
        Driver.command("minOffset", arguments -> admin(arguments).minOffset(Texts.queue(arguments)));
        Driver.command("earliest", arguments -> admin(arguments).earliestMsgStoreTime(Texts.queue(arguments)));
        Driver.command("view", arguments ->
            Texts.json(admin(arguments).viewMessage(arguments.getString("topic"), arguments.getString("msgId"))));
        Driver.command("query", Queries::query);
    }

    private static MQAdmin admin(JSONObject arguments) {
        return Driver.client(arguments, MQAdmin.class);
    }

    private static Object query(JSONObject from) throws Exception {
        long end = from.containsKey("end") ? from.getLongValue("end") : System.currentTimeMillis() + 60_000;
        return Texts.messages(admin(from).queryMessage(from.getString("topic"), from.getString("key"),
            from.containsKey("max") ? from.getIntValue("max") : 32, from.getLongValue("begin"), end).getMessageList());
    }
}
