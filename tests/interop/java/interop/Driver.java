package interop;

import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * An official client under remote control: one JSON object a line on standard input, {"id", "do", …}, one JSON object a
 * line on standard output, {"id", "result"} or {"id", "error"}. Each command runs in a thread of its own, so answers may
 * come in another order than questions. Producers and consumers are made under a name and addressed by it; the names
 * serve as instance names too, so that several of them in this process are several clients to the broker.
 */
public final class Driver {
    interface Command {
        Object run(JSONObject arguments) throws Exception;
    }

    interface Closer {
        void close() throws Exception;
    }

    static final Map<String, Object> CLIENTS = new ConcurrentHashMap<>();
    static final Map<String, Closer> CLOSERS = new ConcurrentHashMap<>();
    private static final Map<String, Command> COMMANDS = new HashMap<>();

    private Driver() {
    }

    static void keep(String name, Object client, Closer closer) {
        CLIENTS.put(name, client);
        CLOSERS.put(name, closer);
    }

    static <T> T client(JSONObject arguments, Class<T> type) {
        String name = arguments.getString("name");
        Object found = CLIENTS.get(name);
        if (!type.isInstance(found)) {
            throw new IllegalArgumentException("no " + type.getSimpleName() + " named " + name);
        }
        return type.cast(found);
    }

    static void command(String name, Command command) {
        COMMANDS.put(name, command);
    }

    private static Object shutdown(JSONObject arguments) throws Exception {
        String name = arguments.getString("name");
        CLIENTS.remove(name);
        Closer closer = CLOSERS.remove(name);
        if (closer != null) {
            closer.close();
        }
        return closer != null;
    }

    private static String describe(Throwable error) {
        StringBuilder text = new StringBuilder(error.toString());
        for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
            text.append(" <- ").append(cause);
        }
        return text.toString();
    }

    public static void main(String[] unused) throws Exception {
        PrintStream answers = new PrintStream(System.out, true, "UTF-8");
        System.setOut(System.err); // what the client libraries print must not mix with the answers
        command("ping", arguments -> "pong");
        command("shutdown", Driver::shutdown);
        Producers.register();
        PushConsumers.register();
        PullConsumers.register();
        Queries.register();
        Replies.register();
        ExecutorService threads = Executors.newCachedThreadPool(task -> {
            Thread thread = new Thread(task);
            thread.setDaemon(true);
            return thread;
        });
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            JSONObject question = JSON.parseObject(line);
            threads.execute(() -> {
                JSONObject answer = new JSONObject();
                answer.put("id", question.get("id"));
                try {
                    Command found = COMMANDS.get(question.getString("do"));
                    if (found == null) {
                        throw new IllegalArgumentException("no command " + question.getString("do"));
                    }
                    answer.put("result", found.run(question));
                } catch (Throwable error) {
                    answer.put("error", describe(error));
                }
                String text = answer.toJSONString();
                synchronized (answers) {
                    answers.println(text);
                }
            });
        }
        Runtime.getRuntime().halt(0); // whoever wants a clean end of a client asks for its shutdown
    }
}
