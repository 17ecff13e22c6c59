// SPDX-License-Identifier: Apache-2.0
// What the kernel alone takes for the tree of the `artifacts` benchmark: the calls that a transfer can not
// do without (open, stat, read, send; receive, open, write, set times, close), in C, over TCP on loopback,
// and nothing else: no hash, no names on the wire, no receipt. A bound, not a rival. LANES pairs of
// processes share the files: artifacts_floor SOURCE TARGET LANES.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kFilesMax = 400000, kReadBytes = 512 * 1024, kBufferBytes = 4 * 1024 * 1024 };

static struct File { char* path; long size; } files[kFilesMax];
static int file_count;
static size_t root_length;
static const char* target;
static char buffer[kBufferBytes];

static void must(int is_true, const char* what) {
    if (is_true) return;
    perror(what);
    _exit(1);
}

static int visit(const char* path, const struct stat* facts, int kind, struct FTW* at) {
    (void)at;
    const char* relative = path + root_length;
    if (kind == FTW_F) {
        must(file_count < kFilesMax && facts->st_size <= kBufferBytes / 2, "too much");
        files[file_count++] = (struct File){strdup(relative), facts->st_size};
    } else {
        char folder[4096];
        snprintf(folder, sizeof folder, "%s%s", target, relative);
        mkdir(folder, 0755);
    }
    return 0;
}

static void write_all(int to, const char* bytes, long length) {
    for (long done = 0; done < length;) {
        const long sent = write(to, bytes + done, length - done);
        must(sent > 0, "write");
        done += sent;
    }
}

static void send_lane(int socket, const char* source, int first, int end) {
    char path[4096];
    long filled = 0;
    for (int i = first; i < end; i++) {
        snprintf(path, sizeof path, "%s%s", source, files[i].path);
        const int file = open(path, O_RDONLY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC);
        struct stat facts;
        must(file >= 0 && fstat(file, &facts) == 0, path);
        if (filled + files[i].size > kReadBytes) {
            write_all(socket, buffer, filled);
            filled = 0;
        }
        must(pread(file, buffer + filled, files[i].size, 0) == files[i].size, path);
        filled += files[i].size;
        close(file);
    }
    write_all(socket, buffer, filled);
}

static void receive_lane(int socket, int first, int end) {
    char path[4096];
    const struct timespec times[2] = {{1000, 0}, {2000, 0}};
    long filled = 0;
    for (int i = first; i < end;) {
        long at = 0;
        for (; i < end && filled - at >= files[i].size; at += files[i++].size) {
            snprintf(path, sizeof path, "%s%s", target, files[i].path);
            const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
            must(file >= 0, path);
            write_all(file, buffer + at, files[i].size);
            must(futimens(file, times) == 0 && close(file) == 0, path);
        }
        memmove(buffer, buffer + at, filled - at);
        filled -= at;
        if (i == end) break;
        const long got = read(socket, buffer + filled, kReadBytes);
        must(got > 0, "read");
        filled += got;
    }
}

int main(int count, char** words) {
    if (count != 4) return 2;
    const int lanes = atoi(words[3]);
    root_length = strlen(words[1]);
    target = words[2];
    must(nftw(words[1], visit, 64, FTW_PHYS) == 0, words[1]);
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    must(bind(listener, (struct sockaddr*)&address, length) == 0 && listen(listener, lanes) == 0, "bind");
    getsockname(listener, (struct sockaddr*)&address, &length);
    for (int lane = 0; lane < lanes; lane++) {
        const int first = (long)file_count * lane / lanes;
        const int end = (long)file_count * (lane + 1) / lanes;
        const int near = socket(AF_INET, SOCK_STREAM, 0);
        must(connect(near, (struct sockaddr*)&address, length) == 0, "connect");
        const int far = accept(listener, NULL, NULL);
        if (fork() == 0) return receive_lane(near, first, end), 0;
        if (fork() == 0) return send_lane(far, words[1], first, end), 0;
        close(near);
        close(far);
    }
    int status = 0;
    int is_good = 1;
    while (wait(&status) > 0) is_good = is_good && status == 0;
    struct rusage use;
    getrusage(RUSAGE_CHILDREN, &use);
    fprintf(stderr, "%.3f s of CPU\n", use.ru_utime.tv_sec + use.ru_stime.tv_sec +
                                           (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6);
    return is_good ? 0 : 1;
}
