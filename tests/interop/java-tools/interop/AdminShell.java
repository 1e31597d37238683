package interop;

import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * mqadmin without a JVM start for each command: {"arguments": […]} a line on standard input, {"output": …} a line on
 * standard output. The entry point is the one behind the official script, and what it prints is handed over untouched.
 */
public final class AdminShell {
    private AdminShell() {
    }

    /**
     * Shortens the end of a command. A 5.x client that shuts down waits for its event thread, which looks up every 3 s
     * only; an interrupt makes it look at once, and by then it has nothing left to do.
     */
    private static Thread wakerOf(Thread command) {
        Thread waker = new Thread(() -> {
            try {
                while (true) {
                    Thread.sleep(20);
                    for (StackTraceElement frame : command.getStackTrace()) {
                        if (frame.getClassName().endsWith(".ServiceThread") && frame.getMethodName().equals("shutdown")) {
                            Thread.getAllStackTraces().keySet().stream()
                                .filter(thread -> thread.getName().startsWith("NettyEventExecutor"))
                                .forEach(Thread::interrupt);
                        }
                    }
                }
            } catch (InterruptedException end) {
                Thread.currentThread().interrupt();
            }
        });
        waker.setDaemon(true);
        waker.start();
        return waker;
    }

    public static void main(String[] unused) throws Exception {
        PrintStream answers = new PrintStream(System.out, true, "UTF-8");
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            List<String> arguments = JSON.parseObject(line).getJSONArray("arguments").toJavaList(String.class);
            ByteArrayOutputStream said = new ByteArrayOutputStream();
            PrintStream capture = new PrintStream(said, true, "UTF-8");
            System.setOut(capture);
            System.setErr(capture);
            Thread waker = wakerOf(Thread.currentThread());
            MQAdminStartup.main0(arguments.toArray(new String[0]), null);
            waker.interrupt();
            JSONObject answer = new JSONObject();
            answer.put("output", new String(said.toByteArray(), StandardCharsets.UTF_8));
            answers.println(answer.toJSONString());
        }
        Runtime.getRuntime().halt(0);
    }
}
