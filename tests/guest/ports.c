#include "ports.h"

#include "agent.h"
#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "report.h"
#include "timer.h"
#include "virtio.h"

#define FEATURE_MULTIPORT (1 << 1)
#define CONFIG_MAX_PORTS  4

/* Ports beyond these are left alone: a queue cannot be set up any more when its port is added. */
#define PORT_LIMIT 8

/* Of port 0 they come first, of the others after those for control. */
enum { CONTROL_RECEIVE = 2, CONTROL_TRANSMIT = 3 };
#define PORT_QUEUE(port) ((port) == 0 ? 0 : 2 + 2 * (port))
#define QUEUES           (2 + 2 * PORT_LIMIT)

#define BUFFERS     8
#define BUFFER_SIZE 512
#define REPLY       BUFFERS /* the transmit queue's descriptor for what the agent says */
#define MESSAGES    QUEUE_SIZE
#define NAME_SIZE   64
#define REST_SECONDS 1
#define AGENT_NAME   "org.qemu.guest_agent.0"
#define ECHO_NAME    "echo" /* and whatever follows */

/* What control messages say. */
enum {
    DEVICE_READY = 0,
    PORT_ADD = 1,
    PORT_REMOVE = 2,
    PORT_READY = 3,
    PORT_OPEN = 6,
    PORT_NAME = 7,
};

struct control {
    uint32_t port;
    uint16_t event, value;
};

struct message {
    struct control control;
    char name[NAME_SIZE];
};

/*
 * Buffer n is descriptor n of the receive queue, and of the transmit queue when it goes back as it
 * is. So nothing is copied, and when the host does not take what it is sent, all buffers are there
 * and the device has none to receive into.
 */
enum holder { IDLE, RECEIVING, READING, SENDING };

enum kind { UNUSED, ECHO, AGENT };

struct port {
    /* These outlive the port: what a queue holds stays there until the device is reset. */
    struct queue receive, transmit;
    enum holder holder[BUFFERS];
    bool replying;

    bool present, ready_due, open_due, opening, opened, host_open;
    enum kind kind;
    uint64_t received, sent;
    char name[NAME_SIZE];
    /* The buffer the agent reads, and what is left of it. */
    uint16_t reading;
    const volatile char *next, *end;
    struct agent agent;
};

static struct virtio virtio;
static struct rings rings[QUEUES];
static struct queue control_receive, control_transmit;
static volatile struct message messages[MESSAGES];
static uint16_t message_count;
static volatile struct control answer;
static struct port ports[PORT_LIMIT];
static volatile char buffers[PORT_LIMIT][BUFFERS][BUFFER_SIZE];
static uint32_t port_count;
static bool in_use, answering, at_rest;
static uint64_t rest_since;
static volatile bool interrupted;

static void completed(unsigned vector)
{
    (void)vector;
    interrupted = true;
    work_pending = true;
}

static void offer(struct queue *queue, uint16_t head, const volatile void *data, uint32_t length,
                  uint16_t flags)
{
    volatile struct descriptor *descriptor = &queue->rings->descriptors[head];
    descriptor->address = (uint64_t)data;
    descriptor->length = length;
    descriptor->flags = flags;
    virtio_offer(queue, head);
}

static void offer_message(uint16_t index)
{
    offer(&control_receive, index, &messages[index], sizeof(messages[index]), DESCRIPTOR_WRITE);
}

/* One at a time: what the device says to it always finds a buffer, and none is dropped. */
static void say(uint32_t port, uint16_t event)
{
    answer.port = port;
    answer.event = event;
    answer.value = 1;
    answering = true;
    offer(&control_transmit, 0, &answer, sizeof(answer), 0);
    virtio_notify(&control_transmit);
}

static bool open_queues(void)
{
    struct rings *next = rings;
    if (!virtio_queue(&virtio, &control_receive, CONTROL_RECEIVE, next++, 1) ||
        !virtio_queue(&virtio, &control_transmit, CONTROL_TRANSMIT, next++, 1))
        return false;
    for (uint32_t i = 0; i < port_count; i++) {
        struct port *port = &ports[i];
        if (!virtio_queue(&virtio, &port->receive, PORT_QUEUE(i), next++, BUFFERS) ||
            !virtio_queue(&virtio, &port->transmit, PORT_QUEUE(i) + 1, next++, REPLY + 1))
            return false;
    }
    return true;
}

static bool open(const struct pci_function *pci)
{
    fill_words((uint64_t *)rings, 0, sizeof(rings) / 8);
    fill_words((uint64_t *)ports, 0, sizeof(ports) / 8);
    answering = interrupted = false;
    /* First, since a device may interrupt as soon as it is ready. */
    interrupt_handle(VECTOR_PORTS, completed);
    if (!virtio_open(&virtio, pci, FEATURE_MULTIPORT, VECTOR_PORTS))
        return false;
    if (!(virtio.features & FEATURE_MULTIPORT) || virtio.config == 0) {
        virtio_reset(&virtio);
        return false;
    }
    port_count = mmio_read32(virtio.config + CONFIG_MAX_PORTS);
    if (port_count > PORT_LIMIT)
        port_count = PORT_LIMIT;
    if (!open_queues())
        return false;
    virtio_begin(&virtio);
    message_count = control_receive.size < MESSAGES ? control_receive.size : MESSAGES;
    for (uint16_t i = 0; i < message_count; i++)
        offer_message(i);
    virtio_notify(&control_receive);
    say(0, DEVICE_READY);
    return true;
}

void ports_open(const struct pci_function *pci)
{
    if (in_use || parameter("ports", 1) == 0)
        return;
    in_use = open(pci);
}

bool ports_wake(void)
{
    if (!in_use)
        return true;
    struct pci_function place = virtio.place;
    in_use = open(&place);
    return in_use && virtio.was_reset;
}

/* True for equal texts too. */
static bool begins_with(const char *text, const char *start)
{
    while (*start != '\0' && *text == *start) {
        text++;
        start++;
    }
    return *start == '\0';
}

static void forget(uint32_t id)
{
    struct port *port = &ports[id];
    if (!port->present)
        return;
    port->present = false;
    for (unsigned i = 0; i < BUFFERS; i++) {
        if (port->holder[i] == READING)
            port->holder[i] = IDLE;
    }
    print("port %lu gone\n", (uint64_t)id);
}

static void add(struct port *port)
{
    port->present = port->ready_due = true;
    port->open_due = port->opening = port->opened = port->host_open = false;
    port->kind = UNUSED;
    port->received = port->sent = 0;
    port->name[0] = '\0';
    port->next = port->end = NULL;
    port->agent.length = 0;
    port->agent.too_long = false;
}

static void name(uint32_t id, const volatile char *text, uint32_t length)
{
    struct port *port = &ports[id];
    uint32_t i = 0;
    /* Some devices count a zero at the end, and some have none. */
    for (; i < length && i < NAME_SIZE - 1 && text[i] != '\0'; i++)
        port->name[i] = text[i];
    port->name[i] = '\0';
    if (begins_with(port->name, AGENT_NAME) && begins_with(AGENT_NAME, port->name))
        port->kind = AGENT;
    else if (begins_with(port->name, ECHO_NAME))
        port->kind = ECHO;
    else
        port->kind = UNUSED;
    /* One that is to be opened is said when it is: from then on the host can use it. */
    if (port->kind != UNUSED && !port->opened)
        port->open_due = !port->opening;
    else
        print("port %lu %s\n", (uint64_t)id, port->name);
}

static void obey(const volatile struct message *message, uint32_t length)
{
    uint32_t id = message->control.port;
    if (length < sizeof(struct control)) {
        print("ports: a control message of %lu bytes\n", (uint64_t)length);
        return;
    }
    /* Some devices count what did not fit. */
    if (length > sizeof(struct message))
        length = sizeof(struct message);
    if (id >= port_count) {
        if (message->control.event == PORT_ADD)
            print("ports: port %lu is beyond the %lu in use\n", (uint64_t)id, (uint64_t)port_count);
        return;
    }
    struct port *port = &ports[id];
    uint16_t event = message->control.event;
    if (event == PORT_ADD) {
        forget(id);
        add(port);
    } else if (!port->present) {
        /* QEMU tells of a port's closing after its removal. */
        if (event != PORT_OPEN)
            print("ports: control message %lu for port %lu, which is not there\n",
                  (uint64_t)event, (uint64_t)id);
    } else if (event == PORT_REMOVE) {
        forget(id);
    } else if (event == PORT_OPEN) {
        port->host_open = message->control.value != 0;
    } else if (event == PORT_NAME) {
        name(id, message->name, length - sizeof(struct control));
    }
}

static void hear(void)
{
    uint16_t head, before = control_receive.next_available;
    uint32_t length;
    while (virtio_take(&control_receive, &head, &length)) {
        if (head >= message_count) {
            print("ports: control message %lu was never asked for\n", (uint64_t)head);
            continue;
        }
        obey(&messages[head], length);
        offer_message(head);
    }
    if (control_receive.next_available != before)
        virtio_notify(&control_receive);
}

static void reap_answer(void)
{
    uint16_t head;
    uint32_t length;
    while (virtio_take(&control_transmit, &head, &length))
        answering = false;
    for (uint32_t i = 0; i < port_count && !answering; i++) {
        struct port *port = &ports[i];
        if (!port->present || !port->opening)
            continue;
        port->opening = false;
        port->opened = true;
        print("port %lu %s\n", (uint64_t)i, port->name);
    }
}

static void say_what_is_due(void)
{
    for (uint32_t i = 0; i < port_count && !answering && !at_rest; i++) {
        struct port *port = &ports[i];
        if (port->present && port->ready_due) {
            port->ready_due = false;
            say(i, PORT_READY);
        } else if (port->present && port->open_due) {
            port->open_due = false;
            port->opening = true;
            say(i, PORT_OPEN);
        }
    }
}

/* The next buffer that was received into. It must be one that the device has. */
static bool receive(struct port *port, uint16_t *head, uint32_t *length)
{
    while (virtio_take(&port->receive, head, length)) {
        if (*head < BUFFERS && port->holder[*head] == RECEIVING && *length <= BUFFER_SIZE) {
            port->holder[*head] = READING;
            port->received += *length;
            return true;
        }
        print("ports: buffer %lu with %lu bytes was never asked for\n", (uint64_t)*head,
              (uint64_t)*length);
    }
    return false;
}

/* Counted at once: who has what was sent must find it counted. */
static void send(struct port *port, uint16_t head, const volatile char *data, uint32_t length)
{
    port->sent += length;
    offer(&port->transmit, head, data, length, 0);
}

static void echo(struct port *port)
{
    uint16_t head;
    uint32_t length;
    while (receive(port, &head, &length)) {
        port->holder[head] = length == 0 ? IDLE : SENDING;
        if (length != 0)
            send(port, head, buffers[port - ports][head], length);
    }
}

/* One reply at a time; the lines behind wait where they were received. */
static void converse(struct port *port)
{
    while (!port->replying && !at_rest) {
        if (port->next == port->end) {
            if (port->next != NULL)
                port->holder[port->reading] = IDLE;
            port->next = port->end = NULL;
            uint32_t length;
            if (!receive(port, &port->reading, &length))
                return;
            port->next = buffers[port - ports][port->reading];
            port->end = port->next + length;
        } else if (agent_hear(&port->agent, *port->next++)) {
            port->replying = true;
            send(port, REPLY, port->agent.reply, port->agent.reply_length);
        }
    }
}

static void discard(struct port *port)
{
    uint16_t head;
    uint32_t length;
    while (receive(port, &head, &length))
        port->holder[head] = IDLE;
}

static void reap_sent(struct port *port)
{
    uint16_t head;
    uint32_t length;
    while (virtio_take(&port->transmit, &head, &length)) {
        if (head == REPLY && port->replying) {
            port->replying = false;
        } else if (head < BUFFERS && port->holder[head] == SENDING) {
            port->holder[head] = IDLE;
        } else {
            print("ports: buffer %lu was never sent\n", (uint64_t)head);
        }
    }
}

static void refill(struct port *port)
{
    uint32_t id = port - ports;
    for (uint16_t i = 0; i < BUFFERS; i++) {
        if (port->holder[i] != IDLE)
            continue;
        port->holder[i] = RECEIVING;
        offer(&port->receive, i, buffers[id][i], BUFFER_SIZE, DESCRIPTOR_WRITE);
    }
}

static void serve(struct port *port)
{
    uint16_t received = port->receive.next_available, sent = port->transmit.next_available;
    reap_sent(port);
    if (port->present && port->kind == ECHO)
        echo(port);
    else if (port->present && port->kind == AGENT)
        converse(port);
    else
        discard(port);
    if (port->present && !at_rest)
        refill(port);
    if (port->transmit.next_available != sent)
        virtio_notify(&port->transmit);
    if (port->receive.next_available != received)
        virtio_notify(&port->receive);
}

void ports_serve(void)
{
    if (!in_use || !interrupted)
        return;
    interrupted = false;
    compiler_barrier();
    reap_answer();
    hear();
    for (uint32_t i = 0; i < port_count; i++)
        serve(&ports[i]);
    /* Last: a port that is said to be ready has its buffers. */
    say_what_is_due();
}

void ports_print(void)
{
    for (uint32_t i = 0; in_use && i < port_count; i++) {
        const struct port *port = &ports[i];
        if (port->present)
            print("port %lu %s rx=%lu tx=%lu open=%lu\n", (uint64_t)i, port->name, port->received,
                  port->sent, (uint64_t)port->host_open);
    }
}

void ports_leave(uint8_t slot)
{
    if (!in_use || virtio.place.bus != 0 || virtio.place.device != slot)
        return;
    virtio_reset(&virtio);
    for (uint32_t i = 0; i < port_count; i++)
        forget(i);
    in_use = false;
}

void ports_rest(bool rest)
{
    at_rest = rest;
    rest_since = report->ticks;
}

static bool is_sending(const struct port *port)
{
    bool sending = port->replying;
    for (unsigned i = 0; i < BUFFERS; i++)
        sending = sending || port->holder[i] == SENDING;
    return sending;
}

bool ports_rest_now(void)
{
    bool busy = answering;
    for (uint32_t i = 0; i < port_count; i++)
        busy = busy || is_sending(&ports[i]);
    /* The host may never take it. */
    bool waited = report->ticks - rest_since > seconds_in_ticks(REST_SECONDS);
    return !in_use || !busy || waited;
}
