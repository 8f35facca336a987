/* A load generator for OpenAI endpoints: one thread, epoll, keep-alive connections, a closed loop on each.
 *
 *     load --port P --connections N [--stream] [--tokens T] [--pace TEXT] [--spread-s S] [--warm-s W] [--window-s D]
 *          [--drain-s C] [--requests K] [--pids a,b,...] [--path /v1/chat/completions] [--key BEARER]
 *     load --calibrate             the CPU and wall time of a fixed piece of work
 *
 * The connections begin spread over S seconds. What happens between W and W + D seconds after the start is measured:
 * requests that end, first tokens and tokens that arrive, the CPU time of the processes named by --pids (all their
 * threads, by the kernel's clock). After that no request begins; those that run have C seconds to end and are then cut.
 * With --requests, K requests are made in all, and the window lasts until they are done (or D seconds have passed).
 *
 * Each token carries the time of its sending (see engine.c), so its delay on the path is known. An answer is an error
 * unless it has HTTP 200, and, streamed, exactly T tokens and [DONE]. Prints one JSON object; times are in us, CPU in ns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
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

enum { MAX_PIDS = 64, HEAD_BYTES = 8192, STAMP_DIGITS = 19, READ_BYTES = 262144 };
enum state { IDLE, CONNECTING, HEAD, BODY };
enum part { SIZE_LINE, DATA, DATA_END, TRAILER };

struct samples {
    int64_t *values, count, room;
};

struct connection {
    int fd, status, is_chunked, tokens, is_done, done_match, digits, line_bytes, head_bytes;
    enum state state;
    enum part part;
    int64_t begun_ns, left, stamp;
    char line[32];
    char head[HEAD_BYTES];
};

static struct options {
    int port, connections, is_stream, tokens;
    int64_t requests;
    double spread_s, warm_s, window_s, drain_s;
    const char *pace, *path, *key;
    int n_pids;
    pid_t pids[MAX_PIDS];
} options = {.connections = 1, .tokens = 16, .window_s = 2, .drain_s = 5, .pace = "none",
             .path = "/v1/chat/completions", .key = "sk-bench"};

static struct connection *connections;
static char request[4096], error_text[400];
static int request_bytes, epoll_fd, n_open, most_open, n_begun_connections;
static int64_t start_ns, window_ns, end_ns, cut_ns, begun, finished, errors, cut, body_bytes, tokens_in_all;
static int64_t window_tokens, window_requests, window_bytes, cpu_before[MAX_PIDS], cpu_after[MAX_PIDS], closed_ns;
static int is_window_open;
static struct samples latencies, first_tokens, delays;

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) ? -1 : t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void read_cpu(int64_t *into) {
    clockid_t clock;
    for (int i = 0; i < options.n_pids; i++)
        into[i] = clock_getcpuclockid(options.pids[i], &clock) ? -1 : clock_ns(clock);
}

static void sample(struct samples *s, int64_t value) {
    if (!is_window_open) return;
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 4096;
        s->values = realloc(s->values, (size_t)s->room * sizeof *s->values);
        if (!s->values) abort();
    }
    s->values[s->count++] = value;
}

static void fail(struct connection *c, const char *what) {
    errors++;
    if (error_text[0]) return;
    snprintf(error_text, sizeof error_text, "%s; status %d, %d tokens, done %d: %.200s", what, c->status, c->tokens,
             c->is_done, c->head);
    for (char *at = error_text; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < 32 || (unsigned char)*at > 126) *at = ' ';
}

static void dial(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    c->status = c->tokens = c->is_done = 0;
    c->head[0] = 0;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail(c, "connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static int may_begin(int64_t now) {
    return options.requests ? begun < options.requests && now < end_ns : now < end_ns;
}

static void begin(struct connection *c) {
    int64_t now = now_ns();
    c->state = IDLE;
    if (!may_begin(now)) return;
    begun++;
    if (++n_open > most_open) most_open = n_open;
    c->state = HEAD;
    c->status = c->is_chunked = c->tokens = c->is_done = c->done_match = c->line_bytes = c->head_bytes = 0;
    c->digits = -1;
    c->part = SIZE_LINE;
    c->begun_ns = now;
    c->head[0] = 0;
    if (send(c->fd, request, (size_t)request_bytes, MSG_NOSIGNAL) != request_bytes) {
        fail(c, "send");
        n_open--;
        finished++;
        close(c->fd);
        dial(c);
    }
}

static void finish(struct connection *c, int64_t now) {
    finished++;
    n_open--;
    if (c->status != 200) fail(c, "refused");
    else if (options.is_stream && (!c->is_done || c->tokens != options.tokens)) fail(c, "not the whole answer");
    else if (!options.is_stream && !c->tokens) fail(c, "no text");
    else {
        sample(&latencies, now - c->begun_ns);
        if (is_window_open) window_requests++;
    }
    begin(c);
}

/* Look for stamps and for [DONE], wherever the path has cut the bytes. */
static void scan(struct connection *c, const char *data, int64_t n, int64_t now) {
    static const char done[] = "[DONE]";
    body_bytes += n;
    if (is_window_open) window_bytes += n;
    for (int64_t i = 0; i < n; i++) {
        char ch = data[i];
        if (ch == '@') {
            c->digits = 0;
            c->stamp = 0;
        } else if (c->digits >= 0) {
            if (ch < '0' || ch > '9') {
                c->digits = -1;
                continue;
            }
            c->stamp = c->stamp * 10 + (ch - '0');
            if (++c->digits < STAMP_DIGITS) continue;
            c->digits = -1;
            tokens_in_all++;
            if (is_window_open) window_tokens++;
            sample(&delays, now - c->stamp);
            if (!c->tokens++) sample(&first_tokens, now - c->begun_ns);
        } else if (ch == done[c->done_match]) {
            if (++c->done_match == (int)sizeof done - 1) c->is_done = 1, c->done_match = 0;
        } else {
            c->done_match = ch == '[';
        }
    }
}

/* Take head bytes; how many were used. */
static int64_t take_head(struct connection *c, const char *data, int64_t n) {
    int room = HEAD_BYTES - 1 - c->head_bytes, before = c->head_bytes;
    int taken = n < room ? (int)n : room;
    memcpy(c->head + before, data, (size_t)taken);
    c->head_bytes += taken;
    c->head[c->head_bytes] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return taken;
    int used = (int)(end + 4 - c->head) - before;
    c->head_bytes = (int)(end + 4 - c->head);
    end[2] = 0;
    c->status = atoi(c->head + 9);
    c->is_chunked = strcasestr(c->head, "\ntransfer-encoding: chunked") != NULL;
    const char *length = strcasestr(c->head, "\ncontent-length:");
    c->left = length ? atoll(length + 16) : 0;
    if (c->status != 200) snprintf(end, (size_t)(c->head + HEAD_BYTES - end), " %.300s", data + used);
    c->state = BODY;
    return used;
}

/* Take chunked bytes; 1 once the answer is over. */
static int take_chunked(struct connection *c, const char **data, int64_t *n, int64_t now) {
    while (*n > 0) {
        if (c->part == DATA) {
            int64_t taken = *n < c->left ? *n : c->left;
            scan(c, *data, taken, now);
            *data += taken, *n -= taken, c->left -= taken;
            if (!c->left) c->part = DATA_END;
            continue;
        }
        char ch = *(*data)++;
        --*n;
        if (ch != '\n') {
            if (ch != '\r' && c->line_bytes < (int)sizeof c->line - 1) c->line[c->line_bytes++] = ch;
            continue;
        }
        c->line[c->line_bytes] = 0;
        int is_empty = !c->line_bytes;
        c->line_bytes = 0;
        if (c->part == DATA_END) c->part = SIZE_LINE;
        else if (c->part == TRAILER) {
            if (is_empty) return 1;
        } else {
            c->left = strtoll(c->line, NULL, 16);
            c->part = c->left ? DATA : TRAILER;
        }
    }
    return 0;
}

static void take(struct connection *c, const char *data, int64_t n, int64_t now) {
    while (n > 0 && (c->state == HEAD || c->state == BODY)) {
        if (c->state == HEAD) {
            int64_t used = take_head(c, data, n);
            data += used, n -= used;
            if (!used) {
                fail(c, "endless head");
                return;
            }
            if (c->state == BODY && !c->is_chunked && !c->left) finish(c, now);
        } else if (c->is_chunked) {
            if (take_chunked(c, &data, &n, now)) finish(c, now);
        } else {
            int64_t taken = n < c->left ? n : c->left;
            scan(c, data, taken, now);
            data += taken, n -= taken, c->left -= taken;
            if (!c->left) finish(c, now);
        }
    }
}

static void on_ready(struct connection *c) {
    static char buffer[READ_BYTES];
    if (c->state == CONNECTING) {
        int failure = 0;
        socklen_t size = sizeof failure;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &failure, &size);
        if (failure) {
            fprintf(stderr, "load: connect: %s\n", strerror(failure));
            exit(1);
        }
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
        begin(c);
        return;
    }
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        take(c, buffer, n, now_ns());
        return;
    }
    close(c->fd);
    if (c->state == IDLE) {
        c->fd = -1;
        return;
    }
    fail(c, "closed in the middle");
    finished++;
    n_open--;
    if (errors > 1000) exit(1);
    dial(c);
}

static void open_window(int64_t now) {
    window_ns = now;
    is_window_open = 1;
    read_cpu(cpu_before);
}

static void close_window(int64_t now) {
    closed_ns = now;
    is_window_open = 0;
    read_cpu(cpu_after);
}

/* How long nothing of our own is to be done. */
static int next_edge_ms(int64_t now, int64_t warm_ns) {
    int64_t edge = cut_ns;
    if (n_begun_connections < options.connections && now < end_ns) return 1;
    if (now < end_ns) edge = end_ns;
    if (now < warm_ns) edge = warm_ns;
    return edge > now ? (int)((edge - now) / 1000000) + 1 : 0;
}

static void run(void) {
    static struct epoll_event events[1024];
    int64_t spread_ns = (int64_t)(options.spread_s * 1e9);
    start_ns = now_ns();
    int64_t warm_ns = start_ns + (int64_t)(options.warm_s * 1e9);
    end_ns = warm_ns + (int64_t)(options.window_s * 1e9);
    cut_ns = end_ns + (int64_t)(options.drain_s * 1e9);
    for (;;) {
        int64_t now = now_ns();
        if (!window_ns && now >= warm_ns) open_window(now);
        int is_over = options.requests ? finished >= options.requests || now >= end_ns : now >= end_ns;
        if (is_window_open && is_over) close_window(now);
        if (closed_ns && (!n_open || now >= cut_ns)) break;
        while (n_begun_connections < options.connections && now < end_ns &&
               now >= start_ns + spread_ns * n_begun_connections / options.connections)
            dial(&connections[n_begun_connections++]);
        int n = epoll_wait(epoll_fd, events, 1024, next_edge_ms(now, warm_ns));
        for (int i = 0; i < n; i++) on_ready(events[i].data.ptr);
    }
    cut = n_open;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s) {
    qsort(s->values, (size_t)s->count, sizeof *s->values, compare);
    printf("\"%s\": {\"count\": %lld", name, (long long)s->count);
    if (s->count) {
        int64_t p50 = s->values[(s->count - 1) / 2], p99 = s->values[(int64_t)((double)(s->count - 1) * 0.99 + 0.5)];
        printf(", \"p50_us\": %.1f, \"p99_us\": %.1f, \"most_us\": %.1f", (double)p50 / 1e3, (double)p99 / 1e3,
               (double)s->values[s->count - 1] / 1e3);
    }
    printf("}, ");
}

static void print_result(void) {
    printf("{\"window_s\": %.6f, \"begun\": %lld, \"finished\": %lld, \"errors\": %lld, \"cut\": %lld, \"most_open\": %d, ",
           (double)(closed_ns - window_ns) / 1e9, (long long)begun, (long long)finished, (long long)errors, (long long)cut,
           most_open);
    printf("\"requests\": %lld, \"chunks\": %lld, \"bytes\": %lld, \"all_chunks\": %lld, \"all_bytes\": %lld, ",
           (long long)window_requests, (long long)window_tokens, (long long)window_bytes, (long long)tokens_in_all,
           (long long)body_bytes);
    print_samples("latency", &latencies);
    print_samples("first_token", &first_tokens);
    print_samples("delay", &delays);
    printf("\"own_cpu_ns\": %lld, \"cpu_ns\": {", (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
    for (int i = 0; i < options.n_pids; i++)
        printf("%s\"%d\": %lld", i ? ", " : "", options.pids[i],
               cpu_before[i] < 0 || cpu_after[i] < 0 ? -1LL : (long long)(cpu_after[i] - cpu_before[i]));
    printf("}, \"error\": \"%s\"}\n", error_text);
}

static int calibrate(void) {
    int64_t wall = now_ns(), cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    volatile uint64_t x = 88172645463325252ULL;
    for (int i = 0; i < 10000000; i++) {
        uint64_t y = x;
        y ^= y << 13, y ^= y >> 7, y ^= y << 17;
        x = y;
    }
    cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("{\"cpu_us\": %.1f, \"wall_us\": %.1f}\n", (double)cpu / 1e3, (double)(now_ns() - wall) / 1e3);
    return 0;
}

static void read_pids(char *list) {
    for (char *at = strtok(list, ","); at && options.n_pids < MAX_PIDS; at = strtok(NULL, ","))
        options.pids[options.n_pids++] = atoi(at);
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'}, {"connections", 1, 0, 'n'}, {"stream", 0, 0, 's'}, {"tokens", 1, 0, 't'},
        {"pace", 1, 0, 'a'}, {"spread-s", 1, 0, 'S'}, {"warm-s", 1, 0, 'W'}, {"window-s", 1, 0, 'D'},
        {"drain-s", 1, 0, 'C'}, {"requests", 1, 0, 'k'}, {"pids", 1, 0, 'i'}, {"path", 1, 0, 'P'}, {"key", 1, 0, 'K'},
        {"calibrate", 0, 0, 'c'}, {0}};
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) switch (o) {
        case 'p': options.port = atoi(optarg); break;
        case 'n': options.connections = atoi(optarg); break;
        case 's': options.is_stream = 1; break;
        case 't': options.tokens = atoi(optarg); break;
        case 'a': options.pace = optarg; break;
        case 'S': options.spread_s = atof(optarg); break;
        case 'W': options.warm_s = atof(optarg); break;
        case 'D': options.window_s = atof(optarg); break;
        case 'C': options.drain_s = atof(optarg); break;
        case 'k': options.requests = atoll(optarg); break;
        case 'i': read_pids(optarg); break;
        case 'P': options.path = optarg; break;
        case 'K': options.key = optarg; break;
        case 'c': exit(calibrate());
        default: exit(2);
        }
    if (!options.port || options.connections < 1 || strlen(options.pace) > 100) exit(2);
}

static void write_request(void) {
    char body[2048];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"bench\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant. "
                     "Answer briefly and precisely, and say so when you do not know.\"},{\"role\":\"user\",\"content\":"
                     "\"pace=%s Please explain how peers that do not trust each other settle what one has sold to the "
                     "other.\"}],\"max_tokens\":%d,\"temperature\":0.7,\"return_token_ids\":true%s}", options.pace,
                     options.tokens,
                     options.is_stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    request_bytes = snprintf(request, sizeof request,
                             "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                             "Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: OpenAI/Python 2.0\r\n"
                             "Content-Length: %d\r\n\r\n%s", options.path, options.port, options.key, n, body);
    if (n >= (int)sizeof body || request_bytes >= (int)sizeof request) exit(2);
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    read_options(argc, argv);
    write_request();
    connections = calloc((size_t)options.connections, sizeof *connections);
    epoll_fd = epoll_create1(0);
    run();
    print_result();
    return 0;
}
