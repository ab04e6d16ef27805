#!/usr/bin/env bash
# Versions: alipay-sdk-java 4.40.0.ALL (Maven Central), OpenJDK 17 (Debian 12).
#
# Behaviour: the gateway reads a whole request and closes the connection without an answer. One execute() then posts the same signed
#   refund a second time, on a new connection, before it raises; if the second is answered, nothing is raised at all. The repeat
#   comes from the JDK's HttpURLConnection, whose property sun.net.http.retryPost is on; the SDK neither sets nor mentions it.
# What most expect: one execute() is one POST. A POST that may have arrived is never repeated without the caller.
# What it costs: the answer that the caller sees can be the one to the repeat ("already refunded", "already paid"), for work that
#   the first did. Whatever stands between and lacks a key of its own for each call (a proxy that counts, a mock bank, a gateway of
#   one's own) does it twice. Read "already" as success, and start the JVM with -Dsun.net.http.retryPost=false.
#
# Output seen:
#   never answered: raised, posts: 2, equal: true
#   answered at the second: no error, posts: 2, equal: true
#   with sun.net.http.retryPost=false: raised, posts: 1
#
# Needs a JDK and Maven; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>f</groupId><artifactId>f</artifactId><version>1</version><dependencies><dependency>
  <groupId>com.alipay.sdk</groupId><artifactId>alipay-sdk-java</artifactId><version>4.40.0.ALL</version>
</dependency></dependencies></project>
XML
mvn -q -B -Dmaven.repo.local="$work/repository" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
  -DoutputDirectory=jars >maven.log 2>&1 || { cat maven.log >&2; exit 1; }
cat >Refund.java <<'JAVA'
import com.alipay.api.AlipayApiException;
import com.alipay.api.DefaultAlipayClient;
import com.alipay.api.request.AlipayTradeRefundRequest;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;

class Refund {
    /** Reads requests whole, and answers only the one with this number (0: none). Gives their first lines with their bodies. */
    static List<String> gateway(ServerSocket listener, int answered) {
        List<String> requests = new CopyOnWriteArrayList<>();
        Thread thread = new Thread(() -> {
            while (true) {
                try (Socket socket = listener.accept()) {
                    InputStream in = socket.getInputStream();
                    StringBuilder head = new StringBuilder();
                    for (int octet; head.indexOf("\r\n\r\n") < 0 && (octet = in.read()) >= 0; ) head.append((char) octet);
                    int length = 0;
                    for (String line : head.toString().split("\r\n"))
                        if (line.toLowerCase().startsWith("content-length:")) length = Integer.parseInt(line.substring(15).trim());
                    requests.add(head.toString().split("\r\n")[0] + new String(in.readNBytes(length), StandardCharsets.UTF_8));
                    String answer = "{\"alipay_trade_refund_response\":{\"code\":\"10000\",\"msg\":\"Success\"}}";
                    if (requests.size() == answered)
                        socket.getOutputStream().write(("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                            + "Content-Length: " + answer.length() + "\r\n\r\n" + answer).getBytes(StandardCharsets.UTF_8));
                } catch (IOException closed) {
                    return;
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
        return requests;
    }

    public static void main(String[] arguments) throws Exception {
        KeyPair keys = KeyPairGenerator.getInstance("RSA").generateKeyPair();
        String key = Base64.getEncoder().encodeToString(keys.getPrivate().getEncoded());
        try (ServerSocket listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
            List<String> requests = gateway(listener, Integer.parseInt(arguments[0]));
            // No key to verify answers with: the test answers unsigned.
            DefaultAlipayClient client = new DefaultAlipayClient("http://127.0.0.1:" + listener.getLocalPort() + "/gateway.do",
                "2021000000000000", key, "json", "utf-8");
            AlipayTradeRefundRequest refund = new AlipayTradeRefundRequest();
            refund.setBizContent("{\"out_trade_no\":\"order-1\",\"refund_amount\":\"1.00\",\"out_request_no\":\"refund-1\"}");
            String outcome = "no error";
            try {
                client.execute(refund);
            } catch (AlipayApiException raised) {
                outcome = "raised";
            }
            long posts = requests.stream().filter(request -> request.startsWith("POST ") && request.contains("refund-1")).count();
            System.out.print(outcome + ", posts: " + posts);
            System.out.println(requests.size() > 1 ? ", equal: " + requests.get(0).equals(requests.get(1)) : "");
        }
    }
}
JAVA
run() { java -cp 'jars/*' "${@:2}" Refund.java "$1" 2>>refund.log; }
seen="never answered: $(run 0)
answered at the second: $(run 2)
with sun.net.http.retryPost=false: $(run 0 -Dsun.net.http.retryPost=false)"
echo "$seen"
[ "$seen" = 'never answered: raised, posts: 2, equal: true
answered at the second: no error, posts: 2, equal: true
with sun.net.http.retryPost=false: raised, posts: 1' ] || { tail -n 20 refund.log >&2; echo 'the behaviour has changed' >&2; exit 1; }
