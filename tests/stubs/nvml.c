/* A libnvidia-ml.so.1 for tests: it answers from environment variables and needs no driver. See tests/stubs/__init__.py.

   Signatures and constants: NVIDIA's nvml.h, API reference of NVML 12. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, INSUFFICIENT_SIZE = 7 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } process_t;

static const char *text(const char *name, const char *fallback) {
    const char *found = getenv(name);
    return found && *found ? found : fallback;
}

static long number(const char *name, long fallback) { return atol(text(name, "")) ? atol(text(name, "")) : (getenv(name) && *getenv(name) ? 0 : fallback); }

static unsigned index_of(void *device) { return (unsigned)(size_t)device - 1; }

/* The item of a list that is a card's, or its last one. */
static const char *item(const char *name, void *device, const char *fallback) {
    const char *each = text(name, fallback), *comma;
    for (unsigned index = index_of(device); index-- && (comma = strchr(each, ',')); each = comma + 1) {}
    return each;
}

static int copy(const char *value, char *to, unsigned length) {
    if (strlen(value) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, value);
    return SUCCESS;
}

static int refuses(void) { return (int)number("STUB_NVML_ERROR", 0); }

int nvmlInit(void) { return refuses(); }
int nvmlInit_v2(void) { return refuses(); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return refuses(); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : code ? "Unknown Error" : "Success"; }

int nvmlSystemGetDriverVersion(char *to, unsigned length) { return copy(text("STUB_DRIVER", "550.54.14"), to, length); }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = (int)number("STUB_CUDA", 12040); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }
int nvmlSystemGetNVMLVersion(char *to, unsigned length) { return copy("12.550.54", to, length); }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)number("STUB_GPUS", 1); return refuses(); }
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= (unsigned)number("STUB_GPUS", 1)) return INVALID_ARGUMENT;
    *device = (void *)(size_t)(index + 1);
    return refuses();
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) { (void)bus; return nvmlDeviceGetHandleByIndex_v2(0, device); }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    unsigned index;
    return sscanf(uuid, "GPU-%8x-", &index) == 1 ? nvmlDeviceGetHandleByIndex_v2(index, device) : INVALID_ARGUMENT;
}

/* Between two GPUs: the level of PCIe, whether one reads the other's memory, and how many of 18 NVLinks are active. */
int nvmlDeviceGetTopologyCommonAncestor(void *first, void *second, int *level) {
    (void)first, (void)second;
    *level = (int)number("STUB_TOPOLOGY", 50);
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(void *first, void *second, int index, int *status) {
    (void)first, (void)second, (void)index;
    *status = (int)number("STUB_P2P", 0);
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active) {
    long links = atol(item("STUB_NVLINKS", device, "-1")); /* -1: a card without NVLink */
    if (links < 0 || link >= (unsigned)number("STUB_NVLINKS_OF_CARD", 18)) return NOT_SUPPORTED;
    *active = link < (unsigned)links;
    return SUCCESS;
}

/* A value of nvmlNvlinkVersion_t. */
int nvmlDeviceGetNvLinkVersion(void *device, unsigned link, unsigned *version) {
    if (link >= (unsigned)number("STUB_NVLINKS", 0)) return INVALID_ARGUMENT;
    (void)device;
    *version = (unsigned)number("STUB_NVLINK_VERSION", 6);
    return SUCCESS;
}

static int pcie(const char *name, unsigned *value) {
    long found = number(name, -1); /* -1: a driver that does not say */
    if (found < 0) return NOT_SUPPORTED;
    *value = (unsigned)found;
    return SUCCESS;
}

int nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned *value) { (void)device; return pcie("STUB_PCIE_GENERATION", value); }
int nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned *value) { (void)device; return pcie("STUB_PCIE_LANES", value); }

int nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned *value) { (void)device; return pcie("STUB_PCIE_MOST_LANES", value); }

/* Faults. Type 1 of errors are those that ECC could not correct, counter 0 those since the card was reset. */
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *errors) {
    (void)device;
    if (number("STUB_ECC", 0) < 0) return NOT_SUPPORTED; /* -1: a card without ECC */
    *errors = type == 1 && counter == 0 ? (unsigned long long)number("STUB_ECC", 0) : 0;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    (void)device;
    *corrected = *uncorrected = 0;
    *pending = (unsigned)number("STUB_REMAP_PENDING", 0);
    *failed = (unsigned)number("STUB_REMAP_FAILED", 0);
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    (void)device;
    *reasons = (unsigned long long)number("STUB_THROTTLED", 0);
    return SUCCESS;
}

typedef struct { unsigned field, scope; long long timestamp, latency; int type, code; unsigned value, rest; } field_t;

int nvmlDeviceGetFieldValues(void *device, int count, field_t *values) {
    (void)device;
    for (int each = 0; each < count; each++) {
        long action = number("STUB_RECOVERY", -1); /* -1: a driver that does not say */
        values[each].code = values[each].field == 230 && action >= 0 ? SUCCESS : NOT_SUPPORTED;
        values[each].value = (unsigned)action;
    }
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *to, unsigned length) { (void)device; return copy(text("STUB_NAME", "Stub GPU"), to, length); }

int nvmlDeviceGetUUID(void *device, char *to, unsigned length) {
    char uuid[64];
    snprintf(uuid, sizeof uuid, "GPU-%08x-0000-4000-8000-000000000000", index_of(device));
    return copy(uuid, to, length);
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    return sscanf(item("STUB_CAPABILITY", device, "9.0"), "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    (void)device;
    memory->total = (unsigned long long)number("STUB_MEMORY_MIB", 81559) << 20;
    memory->used = (unsigned long long)number("STUB_USED_MIB", 0) << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2_t *memory) {
    memory_t plain;
    nvmlDeviceGetMemoryInfo(device, &plain);
    memory->total = plain.total, memory->free = plain.free, memory->used = plain.used, memory->reserved = 0;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device;
    long mode = number("STUB_MIG", -1); /* -1: a card without MIG */
    if (mode < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)mode;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, int *type) { (void)device, (void)link, (void)type; return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, void *info) { (void)device, (void)link, (void)info; return NOT_SUPPORTED; }

int nvmlDeviceGetComputeMode(void *device, unsigned *mode) { (void)device; *mode = (unsigned)number("STUB_COMPUTE_MODE", 0); return SUCCESS; }

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    (void)device;
    unsigned running = (unsigned)number("STUB_PROCESSES", 0), room = *count;
    *count = running;
    if (running > room) return INSUFFICIENT_SIZE;
    for (unsigned each = 0; each < running; each++) processes[each] = (process_t){1000 + each, 1 << 30, 0, 0};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, process_t *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}
