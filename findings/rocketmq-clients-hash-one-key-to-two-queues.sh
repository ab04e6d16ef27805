#!/usr/bin/env bash
# Versions: rocketmq-client 5.5.0 (Java, Maven Central) and rocketmq-client-go 2.1.2 (Go modules), both by the Apache project.
#
# Behaviour: for the same sharding key and the same eight queues, Java's SelectMessageQueueByHash and Go's NewHashQueueSelector choose
#   different queues: one takes the string's hashCode, the other FNV-1a. Of eight keys here, seven part.
# What most expect: the hash is part of the product; a key has one queue, whichever official client sends it.
# What it costs: order. RocketMQ keeps it within a queue only. When a Java service sends "created" and a Go service "paid" for the
#   same order, or one is ported to the other, an ordered consumer takes them from two queues, in either order, on two threads.
#   Name the queue yourself in one of the two (MessageQueueSelector, NewManualQueueSelector).
#
# Output seen:
#   keys:  order-0 … order-7
#   Java:  7 6 5 4 3 2 1 0
#   Go:    2 5 4 7 6 1 0 3
#
# Needs a JDK, Maven and go; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>f</groupId><artifactId>f</artifactId><version>1</version><dependencies><dependency>
  <groupId>org.apache.rocketmq</groupId><artifactId>rocketmq-client</artifactId><version>5.5.0</version>
</dependency></dependencies></project>
XML
mvn -q -B -Dmaven.repo.local="$work/repository" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
  -DoutputDirectory=jars >maven.log 2>&1 || { cat maven.log >&2; exit 1; }
cat >Choose.java <<'JAVA'
import java.util.ArrayList;
import java.util.List;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;

class Choose {
    public static void main(String[] arguments) {
        List<MessageQueue> queues = new ArrayList<>();
        for (int at = 0; at < 8; at++) queues.add(new MessageQueue("orders", "broker", at));
        for (int order = 0; order < 8; order++) {
            Message message = new Message("orders", new byte[0]);
            System.out.print(" " + new SelectMessageQueueByHash().select(queues, message, "order-" + order).getQueueId());
        }
    }
}
JAVA
java=$(java -cp 'jars/*' Choose.java)
mkdir choose
cat >choose/go.mod <<'MOD'
module choose

go 1.24

require github.com/apache/rocketmq-client-go/v2 v2.1.2
MOD
cat >choose/main.go <<'GO'
package main

import (
	"fmt"

	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

func main() {
	var queues []*primitive.MessageQueue
	for at := range 8 {
		queues = append(queues, &primitive.MessageQueue{Topic: "orders", BrokerName: "broker", QueueId: at})
	}
	for order := range 8 {
		message := primitive.NewMessage("orders", nil).WithShardingKey(fmt.Sprint("order-", order))
		fmt.Print(" ", producer.NewHashQueueSelector().Select(message, queues, "").QueueId)
	}
}
GO
(cd choose && GOMODCACHE=$work/modules GOFLAGS='-mod=mod -modcacherw' go build -o call . 2>build.log) ||
  { cat choose/build.log >&2; exit 1; }
go=$(choose/call)
echo "keys:  order-0 … order-7"
echo "Java: $java"
echo "Go:   $go"
[ "$java" = ' 7 6 5 4 3 2 1 0' ] && [ "$go" = ' 2 5 4 7 6 1 0 3' ] || { echo 'the behaviour has changed' >&2; exit 1; }
