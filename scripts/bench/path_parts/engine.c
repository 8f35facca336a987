/* A fake vLLM that is never the bottleneck: one thread, epoll, no allocation per chunk.
 *
 *     engine [PORT]        listens on 127.0.0.1 (0 or nothing: any free port) and prints {"port": N}
 *
 * POST /v1/chat/completions and /v1/completions answer in the bytes of vLLM 0.32; GET /health, /v1/models and /metrics
 * are there. As vLLM does, it honours `max_tokens`, `stream`, `stream_options.include_usage` and
 * `.continuous_usage_stats`, `return_token_ids` and the header X-Request-Id, and sends each event as one HTTP chunk.
 *
 * How the tokens come is said in the prompt, which every proxy passes on:
 *     pace=none             as fast as the reader takes them
 *     pace=staggered:20000  the first at once, then one every 20,000 us, each stream from its own beginning
 *     pace=step:20000       one for every stream at each multiple of 20,000 us, as a batch makes them
 *
 * Every token's text is "@" and 19 digits: CLOCK_MONOTONIC in ns when it was sent; where the reader held the stream up,
 * when it was due.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 16384, INPUT_BYTES = 65536, CHUNK_BYTES = 1536, PROMPT_TOKENS = 42, BURST = 8 };
enum pace { PACE_NONE, PACE_STAGGERED, PACE_STEP };

struct connection {
    int fd, in_bytes, out_bytes, out_sent;
    int is_streaming, is_blocked, is_chat, wants_ids, wants_usage, wants_all_usage;
    int tokens, stage;       /* stage: events sent so far, the role's chunk included */
    int slot;                /* place in `streams`; -1: none */
    enum pace pace;
    int64_t period_ns, due_ns;
    char id[160];
    char in[INPUT_BYTES + 1];
    char out[CHUNK_BYTES];   /* what the kernel did not take of the last event */
};

static struct connection *connections[MAX_FDS];
static struct connection *streams[MAX_FDS];
static int n_streams, epoll_fd;
static char prompt_ids[PROMPT_TOKENS * 6 + 4];

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static char *put(char *at, const char *text) {
    size_t n = strlen(text);
    memcpy(at, text, n);
    return at + n;
}

static char *put_number(char *at, int64_t value, int width) {
    char digits[24];
    int n = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value || n < width);
    while (n) *at++ = digits[--n];
    return at;
}

static void watch(struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void leave_streams(struct connection *c) {
    if (c->slot < 0) return;
    streams[c->slot] = streams[--n_streams];
    streams[c->slot]->slot = c->slot;
    c->slot = -1;
    c->is_streaming = 0;
}

static void drop(struct connection *c) {
    leave_streams(c);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c);
}

/* Send, or keep what the kernel does not take. 0, or -1 where the peer has gone. */
static int send_all(struct connection *c, const char *data, int n) {
    int sent = c->out_bytes ? 0 : (int)send(c->fd, data, (size_t)n, MSG_NOSIGNAL);
    if (sent == n) return 0;
    if (sent < 0) {
        if (errno != EAGAIN) return -1;
        sent = 0;
    }
    if (c->out_bytes + n - sent > CHUNK_BYTES) return -1;
    memcpy(c->out + c->out_bytes, data + sent, (size_t)(n - sent));
    c->out_bytes += n - sent;
    c->is_blocked = 1;
    watch(c, EPOLLIN | EPOLLOUT);
    return 0;
}

static char *put_usage(char *at, int made) {
    at = put(at, "\"usage\":{\"prompt_tokens\":");
    at = put_number(at, PROMPT_TOKENS, 1);
    at = put(at, ",\"total_tokens\":");
    at = put_number(at, PROMPT_TOKENS + made, 1);
    at = put(at, ",\"completion_tokens\":");
    at = put_number(at, made, 1);
    return put(at, "}");
}

static char *put_head(char *at, const struct connection *c, const char *object) {
    at = put(at, "{\"id\":\"");
    at = put(at, c->id);
    at = put(at, "\",\"object\":\"");
    at = put(at, object);
    return put(at, "\",\"created\":1780000000,\"model\":\"bench\",\"choices\":[");
}

static char *put_token(char *at, const struct connection *c, int made, int64_t stamp_ns) {
    at = put(at, c->is_chat ? "{\"index\":0,\"delta\":{\"content\":\"@" : "{\"index\":0,\"text\":\"@");
    at = put_number(at, stamp_ns, 19);
    at = put(at, c->is_chat ? "\"},\"logprobs\":null,\"finish_reason\":" : "\",\"logprobs\":null,\"finish_reason\":");
    at = put(at, made == c->tokens ? "\"length\",\"stop_reason\":null" : "null");
    if (c->wants_ids) {
        at = put(at, ",\"token_ids\":[");
        at = put_number(at, 10000 + made % 80000, 5);
        if (!c->is_chat && made == 1) {
            at = put(at, "],\"prompt_token_ids\":[");
            at = put(at, prompt_ids);
        }
        at = put(at, "]");
    }
    return put(at, "}]");
}

/* The next event of the stream: role (chat), tokens, usage (where asked for), [DONE]. */
static char *put_event(char *at, struct connection *c, int64_t stamp_ns) {
    int made = c->is_chat ? c->stage : c->stage + 1;
    const char *object = c->is_chat ? "chat.completion.chunk" : "text_completion";
    at = put(at, "data: ");
    if (made == 0) {
        at = put_head(at, c, object);
        at = put(at, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]");
        if (c->wants_all_usage) at = put_usage(put(at, ","), 0);
        if (c->wants_ids) at = put(put(put(at, ",\"prompt_token_ids\":["), prompt_ids), "]");
        return put(at, "}\n\n");
    }
    if (made <= c->tokens) {
        at = put_token(put_head(at, c, object), c, made, stamp_ns);
        if (c->wants_all_usage) at = put_usage(put(at, ","), made);
        return put(at, "}\n\n");
    }
    if (made == c->tokens + 1 && c->wants_usage) {
        at = put_usage(put(put_head(at, c, object), "],"), c->tokens);
        return put(at, "}\n\n");
    }
    return put(at, "[DONE]\n\n");
}

/* Send one event as one HTTP chunk. 1 after the last, 0 before, -1 where the peer has gone. */
static int step(struct connection *c, int64_t stamp_ns) {
    char buffer[CHUNK_BYTES];
    char *data = buffer + 8, *end = put_event(data, c, stamp_ns), *start = data;
    int is_last = c->stage == c->tokens + c->is_chat + (c->wants_usage ? 1 : 0);
    int n = (int)(end - data);
    *--start = '\n';
    *--start = '\r';
    do *--start = "0123456789abcdef"[n & 15];
    while (n >>= 4);
    end = put(end, is_last ? "\r\n0\r\n\r\n" : "\r\n");
    c->stage++;
    if (is_last) leave_streams(c);
    if (send_all(c, start, (int)(end - start)) < 0) return -1;
    return is_last;
}

static int answer(struct connection *c, const char *type, const char *body, size_t n) {
    char head[256];
    int k = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %zu\r\n"
                     "content-type: %s\r\n\r\n", n, type);
    char whole[CHUNK_BYTES];
    if ((size_t)k + n > sizeof whole) return -1;
    memcpy(whole, head, (size_t)k);
    memcpy(whole + k, body, n);
    return send_all(c, whole, k + (int)n);
}

static int answer_whole(struct connection *c) {
    char body[CHUNK_BYTES], *at = put_head(body, c, c->is_chat ? "chat.completion" : "text_completion");
    at = put(at, c->is_chat ? "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"@" : "{\"index\":0,\"text\":\"@");
    at = put_number(at, now_ns(), 19);
    at = put(at, c->is_chat ? "\",\"refusal\":null,\"tool_calls\":[]}" : "\"");
    at = put(at, ",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null");
    if (c->wants_ids) {
        at = put(at, ",\"token_ids\":[");
        for (int i = 1; i <= c->tokens && i <= 64; i++) {
            if (i > 1) *at++ = ',';
            at = put_number(at, 10000 + i, 5);
        }
        at = put(at, "]");
    }
    at = put_usage(put(at, "}],"), c->tokens);
    if (c->wants_ids) at = put(put(put(at, ",\"prompt_token_ids\":["), prompt_ids), "]");
    at = put(at, "}");
    return answer(c, "application/json", body, (size_t)(at - body));
}

static const char *json_value(const char *body, const char *quoted_key) {
    const char *at = strstr(body, quoted_key);
    if (!at) return "";
    at += strlen(quoted_key);
    while (*at == ' ' || *at == ':') at++;
    return at;
}

static void read_pace(struct connection *c, const char *body) {
    const char *at = strstr(body, "pace=");
    c->pace = PACE_NONE;
    if (at && !strncmp(at + 5, "staggered:", 10)) c->pace = PACE_STAGGERED, c->period_ns = atoll(at + 15) * 1000;
    if (at && !strncmp(at + 5, "step:", 5)) c->pace = PACE_STEP, c->period_ns = atoll(at + 10) * 1000;
    if (c->period_ns <= 0) c->pace = PACE_NONE;
}

static int begin_stream(struct connection *c) {
    static const char head[] = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                               "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    int64_t now = now_ns();
    if (send_all(c, head, (int)sizeof head - 1) < 0) return -1;
    c->stage = 0;
    c->is_streaming = 1;
    c->slot = n_streams;
    streams[n_streams++] = c;
    c->due_ns = c->pace == PACE_STEP ? (now / c->period_ns + 1) * c->period_ns : now;
    return 0;
}

static void read_id(struct connection *c, const char *head) {
    const char *given = strcasestr(head, "\nx-request-id:");
    int n = 0;
    char *at = put(c->id, c->is_chat ? "chatcmpl-" : "cmpl-");
    if (!given) {
        at = put(at, "3f1c9a0e5b7d4c2e8a6f1d0b9c8e7a65");
    } else {
        for (given += 14; *given == ' ';) given++;
        while (given[n] > ' ' && given[n] != '"' && n < 128) *at++ = given[n++];
    }
    *at = 0;
}

static int complete(struct connection *c, const char *head, const char *body) {
    c->is_chat = strstr(head, "/chat/completions") != NULL;
    c->tokens = atoi(json_value(body, "\"max_tokens\""));
    if (c->tokens <= 0) c->tokens = atoi(json_value(body, "\"max_completion_tokens\""));
    if (c->tokens <= 0) c->tokens = 16;
    c->wants_ids = *json_value(body, "\"return_token_ids\"") == 't';
    c->wants_usage = *json_value(body, "\"include_usage\"") == 't';
    c->wants_all_usage = c->wants_usage && *json_value(body, "\"continuous_usage_stats\"") == 't';
    read_id(c, head);
    if (*json_value(body, "\"stream\"") != 't') return answer_whole(c);
    read_pace(c, body);
    return begin_stream(c);
}

static int serve_page(struct connection *c, const char *head) {
    static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1780000000,"
                                 "\"owned_by\":\"vllm\",\"root\":\"bench\",\"max_model_len\":8192}]}";
    static char metrics[256];
    if (strstr(head, "/v1/models")) return answer(c, "application/json", models, sizeof models - 1);
    if (!strstr(head, "/metrics")) return answer(c, "application/json", "{}", 2);
    int n = snprintf(metrics, sizeof metrics, "vllm:num_requests_running{engine=\"0\"} %d.0\n"
                     "vllm:num_requests_waiting{engine=\"0\"} 0.0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.0\n", n_streams);
    return answer(c, "text/plain; version=0.0.4", metrics, (size_t)n);
}

/* Take one request from the input: bytes used, 0 where more must come, -1 where the connection has to end. */
static int take_request(struct connection *c) {
    c->in[c->in_bytes] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return c->in_bytes == INPUT_BYTES ? -1 : 0;
    int head_bytes = (int)(end + 4 - c->in);
    *end = 0;
    const char *length = strcasestr(c->in, "\ncontent-length:");
    int total = head_bytes + (length ? atoi(length + 16) : 0);
    if (strcasestr(c->in, "\ntransfer-encoding:") || total > INPUT_BYTES || total < head_bytes) return -1;
    if (c->in_bytes < total) {
        *end = '\r';
        return 0;
    }
    char kept = c->in[total];
    c->in[total] = 0;
    int failed = strncmp(c->in, "POST ", 5) ? serve_page(c, c->in) : complete(c, c->in, c->in + head_bytes);
    c->in[total] = kept;
    return failed ? -1 : total;
}

static void take_input(struct connection *c) {
    ssize_t n = recv(c->fd, c->in + c->in_bytes, (size_t)(INPUT_BYTES - c->in_bytes), 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) drop(c);
        return;
    }
    c->in_bytes += (int)n;
    while (!c->is_streaming) {
        int used = take_request(c);
        if (used < 0) drop(c);
        if (used <= 0) return;
        c->in_bytes -= used;
        memmove(c->in, c->in + used, (size_t)c->in_bytes);
    }
}

static void flush_output(struct connection *c) {
    ssize_t n = send(c->fd, c->out, (size_t)c->out_bytes, MSG_NOSIGNAL);
    if (n < 0) return; /* EAGAIN, or an error that reading will tell */
    c->out_bytes -= (int)n;
    memmove(c->out, c->out + n, (size_t)c->out_bytes);
    if (c->out_bytes) return;
    c->is_blocked = 0;
    watch(c, EPOLLIN);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = fd < MAX_FDS ? calloc(1, sizeof *c) : NULL;
        if (!c) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->slot = -1;
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Send what is due on one stream; a paced stream begins with role and first token together, as vLLM's do. */
static void advance(struct connection *c, int64_t now) {
    int left = c->pace == PACE_NONE ? BURST : 1 << 20, result = 0;
    while (!result && !c->is_blocked && left-- && (c->pace == PACE_NONE || c->due_ns <= now)) {
        int is_late = c->pace != PACE_NONE && now - c->due_ns > c->period_ns;
        int is_token = c->stage >= c->is_chat && c->stage < c->tokens + c->is_chat;
        result = step(c, is_late ? c->due_ns : now_ns());
        /* The last token, the usage and [DONE] leave together. */
        if (is_token && c->stage < c->tokens + c->is_chat) c->due_ns += c->period_ns;
    }
    if (result < 0) drop(c);
}

static int64_t next_due(void) {
    int64_t least = INT64_MAX;
    for (int i = 0; i < n_streams; i++) {
        const struct connection *c = streams[i];
        if (c->is_blocked) continue;
        if (c->pace == PACE_NONE) return 0;
        if (c->due_ns < least) least = c->due_ns;
    }
    return least;
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("engine: listen");
        exit(1);
    }
    getsockname(fd, (struct sockaddr *)&address, &n);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv) {
    static struct epoll_event events[1024];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    char *at = prompt_ids;
    for (int i = 0; i < PROMPT_TOKENS; i++) at = put_number(put(at, i ? "," : ""), 20000 + 7 * i, 5);
    *at = 0;
    int listener = listen_on(argc > 1 ? atoi(argv[1]) : 0);
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int64_t due = next_due(), wait = due == INT64_MAX ? -1 : due - now_ns();
        struct timespec timeout = {wait > 0 ? wait / 1000000000 : 0, wait > 0 ? wait % 1000000000 : 0};
        int n = epoll_pwait2(epoll_fd, events, 1024, due == INT64_MAX ? NULL : &timeout, NULL);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            struct connection *c = connections[fd];
            if (fd == listener) accept_all(listener);
            else if (c && (events[i].events & EPOLLOUT)) flush_output(c);
            if (fd != listener && c && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) take_input(c);
        }
        int64_t now = now_ns();
        for (int i = n_streams - 1; i >= 0; i--)
            if (i < n_streams && !streams[i]->is_blocked) advance(streams[i], now);
    }
}
