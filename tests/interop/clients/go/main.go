// The Go client as a program of its own.
//
//	produce NAMESRV GROUP MESSAGES             sends the JSON list, prints one JSON result a message
//	consume NAMESRV GROUP TOPIC EXPRESSION     prints "started", then one JSON object a message, until SIGTERM
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
)

type content struct {
	Topic string            `json:"topic"`
	Body  string            `json:"body"`
	Size  int               `json:"size"`
	Tags  string            `json:"tags"`
	Keys  string            `json:"keys"`
	Props map[string]string `json:"props"`
	Mode  string            `json:"mode"`
	Batch []content         `json:"batch"`
}

var output sync.Mutex

func say(what any) {
	text, err := json.Marshal(what)
	check(err)
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (c content) message() *primitive.Message {
	body := []byte(c.Body)
	if c.Size > 0 {
		body = []byte(strings.Repeat("abcd", c.Size/4))
	}
	message := primitive.NewMessage(c.Topic, body)
	if c.Tags != "" {
		message.WithTag(c.Tags)
	}
	if c.Keys != "" {
		message.WithKeys([]string{c.Keys})
	}
	for key, value := range c.Props {
		message.WithProperty(key, value)
	}
	return message
}

func send(sender rocketmq.Producer, c content) *primitive.SendResult {
	background := context.Background()
	switch c.Mode {
	case "oneway":
		check(sender.SendOneWay(background, c.message()))
		return nil
	case "async":
		done := make(chan *primitive.SendResult)
		check(sender.SendAsync(background, func(_ context.Context, result *primitive.SendResult, err error) {
			check(err)
			done <- result
		}, c.message()))
		return <-done
	case "batch":
		var messages []*primitive.Message
		for _, each := range c.Batch {
			messages = append(messages, each.message())
		}
		result, err := sender.SendSync(background, messages...)
		check(err)
		return result
	}
	result, err := sender.SendSync(background, c.message())
	check(err)
	return result
}

func produce(namesrv, group, list string) {
	var messages []content
	check(json.Unmarshal([]byte(list), &messages))
	sender, err := rocketmq.NewProducer(producer.WithNameServer([]string{namesrv}), producer.WithGroupName(group))
	check(err)
	check(sender.Start())
	for _, each := range messages {
		result := send(sender, each)
		if result == nil {
			say(map[string]any{})
			continue
		}
		say(map[string]any{"status": int(result.Status), "id": result.MsgID, "offsetMsgId": result.OffsetMsgID,
			"queue": result.MessageQueue.QueueId, "offset": result.QueueOffset})
	}
	check(sender.Shutdown())
}

func consume(namesrv, group, topic, expression string) {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	reader, err := rocketmq.NewPushConsumer(consumer.WithNameServer([]string{namesrv}), consumer.WithGroupName(group),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset))
	check(err)
	selector := consumer.MessageSelector{Type: consumer.TAG, Expression: expression}
	check(reader.Subscribe(topic, selector,
		func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			for _, m := range messages {
				say(map[string]any{"body": string(m.Body), "size": len(m.Body), "tags": m.GetTags(), "keys": m.GetKeys(),
					"colour": m.GetProperty("colour"), "topic": m.Topic, "id": m.MsgId, "queue": m.Queue.QueueId,
					"offset": m.QueueOffset, "reconsumed": m.ReconsumeTimes})
			}
			return consumer.ConsumeSuccess, nil
		}))
	check(reader.Start())
	say("started")
	<-end
	check(reader.Shutdown())
	say("stopped")
}

func main() {
	if os.Args[1] == "produce" {
		produce(os.Args[2], os.Args[3], os.Args[4])
	} else {
		consume(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	}
}
