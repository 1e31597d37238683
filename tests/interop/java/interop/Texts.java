package interop;

import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.SocketAddress;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.Collection;
import java.util.Map;
import java.util.Random;
import java.util.zip.CRC32;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** The client's types as JSON and back. */
final class Texts {
    private static final int SHOWN = 2048; // bytes; of longer bodies only size and checksum travel

    private Texts() {
    }

    /** Microseconds since the epoch. */
    static long micros() {
        Instant now = Instant.now();
        return now.getEpochSecond() * 1_000_000 + now.getNano() / 1000;
    }

    static long checksum(byte[] body) {
        CRC32 crc = new CRC32();
        crc.update(body, 0, body.length);
        return crc.getValue();
    }

    /** A body of that size which compresses to about a quarter, the same for the same seed. */
    static byte[] generated(int size, long seed) {
        byte[] alphabet = "abcd".getBytes(StandardCharsets.US_ASCII);
        Random random = new Random(seed);
        byte[] body = new byte[size];
        for (int i = 0; i < size; i++) {
            body[i] = alphabet[random.nextInt(alphabet.length)];
        }
        return body;
    }

    static Message message(String topic, JSONObject from) {
        byte[] body = from.containsKey("size")
            ? generated(from.getIntValue("size"), from.getLongValue("seed"))
            : from.getString("body").getBytes(StandardCharsets.UTF_8);
        Message message = new Message(topic, body);
        if (from.containsKey("tags")) {
            message.setTags(from.getString("tags"));
        }
        if (from.containsKey("keys")) {
            message.setKeys(from.getString("keys"));
        }
        if (from.containsKey("flag")) {
            message.setFlag(from.getIntValue("flag"));
        }
        if (from.containsKey("delay")) {
            message.setDelayTimeLevel(from.getIntValue("delay"));
        }
        if (from.containsKey("wait")) {
            message.setWaitStoreMsgOK(from.getBooleanValue("wait"));
        }
        if (from.containsKey("props")) {
            for (Map.Entry<String, Object> property : from.getJSONObject("props").entrySet()) {
                message.putUserProperty(property.getKey(), String.valueOf(property.getValue()));
            }
        }
        if (from.containsKey("system")) {
            for (Map.Entry<String, Object> property : from.getJSONObject("system").entrySet()) {
                MessageAccessor.putProperty(message, property.getKey(), String.valueOf(property.getValue()));
            }
        }
        return message;
    }

    static MessageQueue queue(JSONObject from) {
        return new MessageQueue(from.getString("topic"), from.getString("broker"), from.getIntValue("queue"));
    }

    static JSONObject json(MessageQueue queue) {
        JSONObject out = new JSONObject();
        out.put("topic", queue.getTopic());
        out.put("broker", queue.getBrokerName());
        out.put("queue", queue.getQueueId());
        return out;
    }

    static JSONArray queues(Collection<MessageQueue> queues) {
        JSONArray out = new JSONArray();
        queues.stream().sorted().forEach(queue -> out.add(json(queue)));
        return out;
    }

    static JSONObject json(SendResult result) {
        JSONObject out = result.getMessageQueue() == null ? new JSONObject() : json(result.getMessageQueue());
        out.put("status", result.getSendStatus().name());
        out.put("msgId", result.getMsgId());
        out.put("offsetMsgId", result.getOffsetMsgId());
        out.put("offset", result.getQueueOffset());
        out.put("transactionId", result.getTransactionId());
        out.put("regionId", result.getRegionId());
        out.put("traceOn", result.isTraceOn());
        return out;
    }

    static JSONObject json(MessageExt message) {
        JSONObject out = new JSONObject();
        byte[] body = message.getBody() == null ? new byte[0] : message.getBody();
        out.put("topic", message.getTopic());
        out.put("broker", message.getBrokerName());
        out.put("queue", message.getQueueId());
        out.put("offset", message.getQueueOffset());
        out.put("tags", message.getTags());
        out.put("keys", message.getKeys());
        out.put("flag", message.getFlag());
        out.put("props", message.getProperties());
        out.put("size", body.length);
        out.put("crc", checksum(body));
        if (body.length <= SHOWN) {
            out.put("body", new String(body, StandardCharsets.UTF_8));
        }
        out.put("msgId", message.getMsgId());
        if (message instanceof MessageClientExt) {
            out.put("offsetMsgId", ((MessageClientExt) message).getOffsetMsgId());
        }
        out.put("sysFlag", message.getSysFlag());
        out.put("bornHost", text(message.getBornHost()));
        out.put("storeHost", text(message.getStoreHost()));
        out.put("bornTimestamp", message.getBornTimestamp());
        out.put("storeTimestamp", message.getStoreTimestamp());
        out.put("commitLogOffset", message.getCommitLogOffset());
        out.put("storeSize", message.getStoreSize());
        out.put("bodyCRC", message.getBodyCRC());
        out.put("reconsumeTimes", message.getReconsumeTimes());
        out.put("preparedTransactionOffset", message.getPreparedTransactionOffset());
        return out;
    }

    static JSONArray messages(Collection<MessageExt> messages) {
        JSONArray out = new JSONArray();
        for (MessageExt message : messages) {
            out.add(json(message));
        }
        return out;
    }

    private static String text(SocketAddress address) {
        return address == null ? null : address.toString();
    }

    /** What every client is told: where the name servers are, who it is, how often it looks. */
    static void configure(ClientConfig client, JSONObject arguments) {
        client.setNamesrvAddr(arguments.getString("namesrv"));
        client.setInstanceName(arguments.containsKey("instance") ? arguments.getString("instance") : arguments.getString("name"));
        client.setPollNameServerInterval(arguments.containsKey("poll") ? arguments.getIntValue("poll") : 1000);
        client.setVipChannelEnabled(arguments.getBooleanValue("vip"));
        if (arguments.containsKey("heartbeat")) {
            client.setHeartbeatBrokerInterval(arguments.getIntValue("heartbeat"));
        }
        if (arguments.containsKey("persist")) {
            client.setPersistConsumerOffsetInterval(arguments.getIntValue("persist"));
        }
    }

    /**
     * Calls the one-argument setter with the enum constant of that name. For MessageModel, which 5.x keeps in another
     * package than 4.x, so that no import fits both.
     */
    static void setEnum(Object target, String setter, String constant) throws Exception {
        for (Method method : target.getClass().getMethods()) {
            if (method.getName().equals(setter) && method.getParameterCount() == 1) {
                for (Object value : method.getParameterTypes()[0].getEnumConstants()) {
                    if (((Enum<?>) value).name().equals(constant)) {
                        method.invoke(target, value);
                        return;
                    }
                }
            }
        }
        throw new IllegalArgumentException("no " + setter + "(" + constant + ")");
    }

    /** Calls a method by name, with null for every argument beyond those given: 5.x added some at the end. */
    static Object callPadded(Object target, String name, Object... given) throws Exception {
        for (Method method : target.getClass().getMethods()) {
            Class<?>[] types = method.getParameterTypes();
            boolean fits = method.getName().equals(name) && types.length >= given.length && types.length <= given.length + 1
                && (types.length == given.length || !types[given.length].isPrimitive());
            for (int i = 0; fits && i < given.length; i++) {
                fits = given[i] instanceof Integer ? types[i] == int.class : types[i].isInstance(given[i]);
            }
            if (fits) {
                Object[] all = new Object[types.length];
                System.arraycopy(given, 0, all, 0, given.length);
                try {
                    return method.invoke(target, all);
                } catch (InvocationTargetException error) {
                    throw error.getCause() instanceof Exception ? (Exception) error.getCause() : error;
                }
            }
        }
        throw new IllegalArgumentException("no method " + name);
    }
}
