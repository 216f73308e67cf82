/* A PKCS#11 module that forwards every call to another one, counts it, and fails where it is told to.
 *
 * Beside the library itself lie, in a folder of its own:
 *   module   the path of the real module, one line
 *   script   what to do instead, read again before each call; a line is
 *                FUNCTION NUMBER only|from ACTION [ARGUMENT]
 *            FUNCTION is C_Sign, or * for all of them but C_GetFunctionList, C_Initialize and
 *            C_Finalize. NUMBER counts the calls of that function by all processes from 1 on, so that
 *            a process that crashed does not crash again. Actions:
 *                rv CODE         return CODE, and do not forward
 *                delay MS        wait, then forward
 *                hang            never return
 *                crash           SIGSEGV before forwarding
 *                crash-after     SIGSEGV after forwarding: done, but nobody is told
 *                exit CODE       _exit
 *                flip            forward, then change a bit of what came out: a faulty signature
 *                flags BITS      forward, then set these bits in the flags of C_GetTokenInfo
 *                stuck CODE      this call and all that follow in this process return CODE, until
 *                                C_Finalize and C_Initialize were called
 *   counts   one u64 per function, in the order of the function list, shared by all processes; as many
 *            again that are now inside the call or never came out of it
 *   calls    a line per call: time, process, function, session, what came of it, microseconds; at most
 *            LONGEST_LOG bytes
 *
 * Arguments are never written anywhere: one of them is the PIN.
 *
 * Every argument of PKCS#11 is a machine word (CK_ULONG, a pointer, or a CK_BBOOL, which the callee
 * takes from a word), so one macro per number of arguments is enough, and no header is needed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long word;

enum { GENERAL_ERROR = 5, FUNCTION_NOT_SUPPORTED = 0x54, LONGEST_LOG = 4 << 20, ARGUMENTS_BAD = 7 };

/* X(name, arguments, first argument is a session): the order is that of CK_FUNCTION_LIST 2.40. */
#define FUNCTIONS(X) \
    X(C_Initialize, 1, 0) X(C_Finalize, 1, 0) X(C_GetInfo, 1, 0) X(C_GetFunctionList, 1, 0) \
    X(C_GetSlotList, 3, 0) X(C_GetSlotInfo, 2, 0) X(C_GetTokenInfo, 2, 0) \
    X(C_GetMechanismList, 3, 0) X(C_GetMechanismInfo, 3, 0) X(C_InitToken, 4, 0) X(C_InitPIN, 3, 1) \
    X(C_SetPIN, 5, 1) X(C_OpenSession, 5, 0) X(C_CloseSession, 1, 1) X(C_CloseAllSessions, 1, 0) \
    X(C_GetSessionInfo, 2, 1) X(C_GetOperationState, 3, 1) X(C_SetOperationState, 5, 1) \
    X(C_Login, 4, 1) X(C_Logout, 1, 1) X(C_CreateObject, 4, 1) X(C_CopyObject, 5, 1) \
    X(C_DestroyObject, 2, 1) X(C_GetObjectSize, 3, 1) X(C_GetAttributeValue, 4, 1) \
    X(C_SetAttributeValue, 4, 1) X(C_FindObjectsInit, 3, 1) X(C_FindObjects, 4, 1) \
    X(C_FindObjectsFinal, 1, 1) X(C_EncryptInit, 3, 1) X(C_Encrypt, 5, 1) X(C_EncryptUpdate, 5, 1) \
    X(C_EncryptFinal, 3, 1) X(C_DecryptInit, 3, 1) X(C_Decrypt, 5, 1) X(C_DecryptUpdate, 5, 1) \
    X(C_DecryptFinal, 3, 1) X(C_DigestInit, 2, 1) X(C_Digest, 5, 1) X(C_DigestUpdate, 3, 1) \
    X(C_DigestKey, 2, 1) X(C_DigestFinal, 3, 1) X(C_SignInit, 3, 1) X(C_Sign, 5, 1) \
    X(C_SignUpdate, 3, 1) X(C_SignFinal, 3, 1) X(C_SignRecoverInit, 3, 1) X(C_SignRecover, 5, 1) \
    X(C_VerifyInit, 3, 1) X(C_Verify, 5, 1) X(C_VerifyUpdate, 3, 1) X(C_VerifyFinal, 3, 1) \
    X(C_VerifyRecoverInit, 3, 1) X(C_VerifyRecover, 5, 1) X(C_DigestEncryptUpdate, 5, 1) \
    X(C_DecryptDigestUpdate, 5, 1) X(C_SignEncryptUpdate, 5, 1) X(C_DecryptVerifyUpdate, 5, 1) \
    X(C_GenerateKey, 5, 1) X(C_GenerateKeyPair, 8, 1) X(C_WrapKey, 6, 1) X(C_UnwrapKey, 8, 1) \
    X(C_DeriveKey, 6, 1) X(C_SeedRandom, 3, 1) X(C_GenerateRandom, 3, 1) \
    X(C_GetFunctionStatus, 1, 1) X(C_CancelFunction, 1, 1) X(C_WaitForSlotEvent, 3, 0)

#define NUMBER(name, arguments, session) N_##name,
enum { FUNCTIONS(NUMBER) HOW_MANY };

#define NAME(name, arguments, session) #name,
static const char *const names[] = {FUNCTIONS(NAME)};

static char folder[4096];
static struct list { word version; void *at[HOW_MANY]; } *real, ours;
static struct { _Atomic uint64_t calls[HOW_MANY], inside[HOW_MANY]; } *counts;
static int calls_fd = -1;
static _Atomic word stuck; /* what every call of this process returns, or 0 */

enum action { FORWARD, RV, DELAY, HANG, CRASH, CRASH_AFTER, EXIT, FLIP, FLAGS, STUCK };
struct order { enum action action; unsigned long argument; };

/* --- set up, once */

static int beside(char *path, size_t size, const char *name) {
    return snprintf(path, size, "%s/%s", folder, name) < (int)size;
}

__attribute__((constructor)) static void prepare(void) {
    Dl_info where;
    char path[5000];
    if (!dladdr((void *)prepare, &where) || !realpath(where.dli_fname, folder)) return;
    *strrchr(folder, '/') = 0;
    beside(path, sizeof path, "counts");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0 && !ftruncate(fd, sizeof *counts)) {
        void *shared = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED) counts = shared;
    }
    if (fd >= 0) close(fd);
    beside(path, sizeof path, "calls");
    calls_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int load(void) {
    char path[5000], line[4096];
    if (real) return 1;
    if (!counts || !beside(path, sizeof path, "module")) return 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    char *read = fgets(line, sizeof line, file);
    fclose(file);
    if (!read) return 0;
    line[strcspn(line, "\n")] = 0;
    void *library = dlopen(line, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "shim: %s\n", dlerror());
        return 0;
    }
    word (*get)(struct list **) = (word(*)(struct list **))dlsym(library, "C_GetFunctionList");
    return get && get(&real) == 0 && real;
}

/* --- the script */

static enum action action_of(const char *word_) {
    static const char *const known[] = {"", "rv", "delay", "hang", "crash", "crash-after", "exit", "flip", "flags", "stuck"};
    for (int i = 1; i < (int)(sizeof known / sizeof *known); i++)
        if (!strcmp(word_, known[i])) return (enum action)i;
    fprintf(stderr, "shim: unknown action %s\n", word_);
    abort();
}

static int for_all(int number) {
    return number != N_C_GetFunctionList && number != N_C_Initialize && number != N_C_Finalize;
}

static struct order scripted(int number, uint64_t nth) {
    struct order none = {FORWARD, 0};
    char path[5000], line[256], name[64], mode[16], action[32];
    beside(path, sizeof path, "script");
    FILE *file = fopen(path, "re");
    if (!file) return none;
    while (fgets(line, sizeof line, file)) {
        unsigned long from, argument = 0;
        char text[32] = "0";
        if (sscanf(line, "%63s %lu %15s %31s %31s", name, &from, mode, action, text) < 4) continue;
        int matches = !strcmp(name, names[number]) || (!strcmp(name, "*") && for_all(number));
        if (!matches || (strcmp(mode, "from") ? nth != from : nth < from)) continue;
        argument = strtoul(text, NULL, 0);
        fclose(file);
        return (struct order){action_of(action), argument};
    }
    fclose(file);
    return none;
}

/* --- one call */

static int64_t microseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void wrote(int number, word session, const char *what, int64_t began) {
    struct stat found;
    char line[200];
    if (calls_fd < 0 || fstat(calls_fd, &found) || found.st_size > LONGEST_LOG) return;
    int64_t now = microseconds();
    int size = snprintf(line, sizeof line, "%lld %d %s %lu %s %lld\n", (long long)began, (int)getpid(),
                        names[number], session, what, (long long)(now - began));
    if (write(calls_fd, line, (size_t)size) < 0) return;
}

static void wait_ms(unsigned long ms) {
    struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

static void crash(void) {
    signal(SIGSEGV, SIG_DFL);
    kill(getpid(), SIGSEGV);
    for (;;) pause();
}

/* What happens before the real call. Whether it is to be made; if not, *answer is what to return. */
static int before(int number, word session, int64_t began, struct order *order, word *answer) {
    uint64_t nth = atomic_fetch_add(&counts->calls[number], 1) + 1;
    atomic_fetch_add(&counts->inside[number], 1);
    *order = scripted(number, nth);
    if (number == N_C_Finalize) stuck = 0;
    if (stuck && for_all(number)) *order = (struct order){RV, stuck};
    switch (order->action) {
    case STUCK: stuck = order->argument; /* fall through */
    case RV: *answer = order->argument; return 0;
    case DELAY: wait_ms(order->argument); return 1;
    case HANG: wrote(number, session, "hang", began); for (;;) pause();
    case CRASH: wrote(number, session, "crash", began); crash(); return 0;
    case EXIT: wrote(number, session, "exit", began); _exit((int)order->argument);
    default: return 1;
    }
}

static word after(int number, word session, int64_t began, const struct order *order, word answer) {
    char said[32];
    if (order->action == CRASH_AFTER) {
        wrote(number, session, "crash-after", began);
        crash();
    }
    snprintf(said, sizeof said, "0x%lx", answer);
    atomic_fetch_sub(&counts->inside[number], 1);
    wrote(number, session, said, began);
    return answer;
}

/* C_Sign: session, data, length, signature, its length. The length query gives no signature. */
static void flip(int number, word signature) {
    if (number == N_C_Sign && signature) *(unsigned char *)signature ^= 1;
}

/* C_GetTokenInfo: slot, CK_TOKEN_INFO, whose flags come after four texts of 32, 32, 16 and 16 bytes. */
static void set_flags(int number, word info, word bits) {
    if (number == N_C_GetTokenInfo && info) *(word *)(info + 96) |= bits;
}

#define P1 word a
#define P2 P1, word b
#define P3 P2, word c
#define P4 P3, word d
#define P5 P4, word e
#define P6 P5, word f
#define P8 P6, word g, word h
#define V1 a
#define V2 a, b
#define V3 a, b, c
#define V4 a, b, c, d
#define V5 a, b, c, d, e
#define V6 a, b, c, d, e, f
#define V8 a, b, c, d, e, f, g, h
#define SECOND1 0
#define SECOND2 b
#define SECOND3 b
#define SECOND4 b
#define SECOND5 b
#define SECOND6 b
#define SECOND8 b
#define FOURTH1 0
#define FOURTH2 0
#define FOURTH3 0
#define FOURTH4 d
#define FOURTH5 d
#define FOURTH6 d
#define FOURTH8 d

word C_GetFunctionList(struct list **given);

#define FORWARD_CALL(name, arguments, session) \
    static word our_##name(P##arguments) { \
        int64_t began = microseconds(); \
        struct order order; \
        word answer = FUNCTION_NOT_SUPPORTED, holder = session ? a : 0; \
        if (N_##name == N_C_GetFunctionList) return C_GetFunctionList((struct list **)a); \
        if (before(N_##name, holder, began, &order, &answer) && real->at[N_##name]) \
            answer = ((word(*)(P##arguments))real->at[N_##name])(V##arguments); \
        if (order.action == FLIP && answer == 0) flip(N_##name, FOURTH##arguments); \
        if (order.action == FLAGS && answer == 0) set_flags(N_##name, SECOND##arguments, order.argument); \
        return after(N_##name, holder, began, &order, answer); \
    }
FUNCTIONS(FORWARD_CALL)

#define ENTER(name, arguments, session) ours.at[N_##name] = (void *)our_##name;

__attribute__((visibility("default"))) word C_GetFunctionList(struct list **given) {
    if (!given) return ARGUMENTS_BAD;
    if (!load()) return GENERAL_ERROR;
    ours.version = (real->version & ~(word)0xffff) | 2 | 40 << 8; /* major, minor: two bytes */
    FUNCTIONS(ENTER)
    *given = &ours;
    return 0;
}
