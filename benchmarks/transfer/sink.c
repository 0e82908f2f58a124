/* An S3 server that throws away what it gets and makes up what it gives: for benchmarks of
 * clients, whose own cost it lets show. Signatures and checksums are not looked at.
 *
 *   sink PORT SIZE [CERT KEY]      SIZE: bytes of every object there is; TLS with CERT and KEY
 *
 * A byte of an object at offset o is pattern[o % 1 MiB]; the pattern is that of a fixed LCG,
 * made again by child.py. One thread for each connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MIB (1 << 20)

static SSL_CTX *context;
static unsigned long long object_size;
static unsigned char pattern[2 * MIB]; /* twice, so that any MiB of it is contiguous */

struct connection {
    int fd;
    SSL *tls;
};

static long receive(struct connection *c, void *data, size_t size) {
    return c->tls ? SSL_read(c->tls, data, (int)size) : recv(c->fd, data, size, 0);
}

/* Reads and drops a chunked body; what has been received already stands in the buffer. */
static int drop_chunks(struct connection *c, char *buffer, size_t *have) {
    for (;;) {
        char *stop;
        buffer[*have] = 0;
        while (!(stop = strstr(buffer, "\r\n"))) {
            long n = receive(c, buffer + *have, 4096);
            if (n <= 0) return 0;
            *have += (size_t)n;
            buffer[*have] = 0;
        }
        unsigned long long left = strtoull(buffer, NULL, 16);
        int last = left == 0;
        left += 2; /* the line's end behind it */
        *have -= (size_t)(stop + 2 - buffer);
        memmove(buffer, stop + 2, *have);
        while (*have < left) {
            left -= *have;
            long n = receive(c, buffer, left > MIB - 8192 ? MIB - 8192 : (size_t)left);
            if (n <= 0) return 0;
            *have = (size_t)n;
        }
        *have -= (size_t)left;
        memmove(buffer, buffer + left, *have);
        if (last) return 1;
    }
}

static int give(struct connection *c, const void *data, size_t size) {
    const char *at = data;
    while (size) {
        long n = c->tls ? SSL_write(c->tls, at, (int)size) : send(c->fd, at, size, MSG_NOSIGNAL);
        if (n <= 0) return 0;
        at += n;
        size -= (size_t)n;
    }
    return 1;
}

static int answer(struct connection *c, const char *status, const char *headers, const char *body) {
    char text[4096];
    int n = snprintf(text, sizeof text, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n%s", status,
                     headers, strlen(body), body);
    return give(c, text, (size_t)n);
}

static int give_object(struct connection *c, const char *range, int head) {
    unsigned long long first = 0, last = object_size - 1;
    char text[512];
    int partial = range && sscanf(range, "bytes=%llu-%llu", &first, &last) >= 1;
    if (last >= object_size) last = object_size - 1;
    unsigned long long left = last - first + 1;
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 %s\r\nContent-Length: %llu\r\nETag: \"0123456789abcdef\"\r\n"
                     "Last-Modified: Sat, 21 Nov 2026 08:00:00 GMT\r\nAccept-Ranges: bytes\r\n"
                     "Content-Type: application/octet-stream\r\n",
                     partial ? "206 Partial Content" : "200 OK", left);
    if (partial)
        n += snprintf(text + n, sizeof text - (size_t)n, "Content-Range: bytes %llu-%llu/%llu\r\n",
                      first, last, object_size);
    n += snprintf(text + n, sizeof text - (size_t)n, "\r\n");
    if (!give(c, text, (size_t)n)) return 0;
    while (left && !head) {
        size_t size = left > MIB ? MIB : (size_t)left;
        if (!give(c, pattern + first % MIB, size)) return 0;
        first += size;
        left -= size;
    }
    return 1;
}

static int serve(struct connection *c, char *request, const char *target) {
    static const char *etag = "ETag: \"0123456789abcdef\"\r\n";
    char *range = strcasestr(request, "\r\nRange:");
    if (range) {
        range += 8;
        while (*range == ' ') range++;
    }
    if (!strncmp(request, "PUT", 3)) return answer(c, "200 OK", etag, "");
    if (!strncmp(request, "DELETE", 6)) return answer(c, "204 No Content", "", "");
    if (!strncmp(request, "GET", 3) && strstr(target, ".json")) /* no lease, no manifest: kept is nothing */
        return answer(c, "404 Not Found", "", "<Error><Code>NoSuchKey</Code></Error>");
    if (!strncmp(request, "HEAD", 4)) return give_object(c, NULL, 1);
    if (!strncmp(request, "POST", 4)) {
        if (strstr(target, "uploadId="))
            return answer(c, "200 OK", "", "<CompleteMultipartUploadResult><ETag>\"0123-1\"</ETag>"
                                           "</CompleteMultipartUploadResult>");
        if (strstr(target, "uploads"))
            return answer(c, "200 OK", "", "<InitiateMultipartUploadResult><UploadId>upload</UploadId>"
                                           "</InitiateMultipartUploadResult>");
        return answer(c, "200 OK", "", "<DeleteResult></DeleteResult>");
    }
    if (strstr(target, "list-type="))
        return answer(c, "200 OK", "", "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>");
    return give_object(c, range, 0);
}

static void *talk(void *argument) {
    struct connection c = {(int)(long)argument, NULL};
    char *buffer = malloc(MIB + 1);
    size_t have = 0;
    int on = 1;
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (context) {
        c.tls = SSL_new(context);
        SSL_set_fd(c.tls, c.fd);
        if (SSL_accept(c.tls) != 1) goto end;
    }
    for (;;) {
        char *stop, target[4096];
        buffer[have] = 0;
        while (!(stop = strstr(buffer, "\r\n\r\n"))) {
            long n = have < MIB ? receive(&c, buffer + have, MIB - have) : 0;
            if (n <= 0) goto end;
            have += (size_t)n;
            buffer[have] = 0;
        }
        *stop = 0;
        if (sscanf(buffer, "%*s %4095s", target) != 1) goto end;
        char *length = strcasestr(buffer, "\r\nContent-Length:");
        unsigned long long left = length ? strtoull(length + 17, NULL, 10) : 0;
        char request[8192];
        snprintf(request, sizeof request, "%s", buffer);
        if (strcasestr(request, "100-continue") && !give(&c, "HTTP/1.1 100 Continue\r\n\r\n", 25)) goto end;
        size_t body = have - (size_t)(stop + 4 - buffer);
        if (strcasestr(request, "\r\nTransfer-Encoding: chunked")) {
            memmove(buffer, stop + 4, body);
            have = body;
            if (!drop_chunks(&c, buffer, &have)) goto end;
        } else if (body > left) {
            memmove(buffer, stop + 4 + left, body - (size_t)left);
            have = body - (size_t)left;
        } else {
            left -= body;
            have = 0;
            while (left) {
                long n = receive(&c, buffer, left > MIB ? MIB : (size_t)left);
                if (n <= 0) goto end;
                left -= (unsigned long long)n;
            }
        }
        if (!serve(&c, request, target)) goto end;
    }
end:
    if (c.tls) SSL_free(c.tls);
    close(c.fd);
    free(buffer);
    return NULL;
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    object_size = strtoull(arguments[2], NULL, 10);
    unsigned int state = 12345;
    for (int i = 0; i < MIB; i++) {
        state = state * 1103515245u + 12345u;
        pattern[i] = pattern[i + MIB] = (unsigned char)(state >> 16);
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (count > 4) {
        context = SSL_CTX_new(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(context, arguments[3]) != 1 ||
            SSL_CTX_use_PrivateKey_file(context, arguments[4], SSL_FILETYPE_PEM) != 1)
            return 3;
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 512)) return 4;
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && !pthread_create(&thread, NULL, talk, (void *)(long)fd)) pthread_detach(thread);
    }
}
