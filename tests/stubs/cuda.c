/* A libcuda.so.1 for tests: devices that can be asked and never used. See tests/stubs/__init__.py.

   It is also preloaded, for the questions of torch to libcudart about devices: the real libcudart asks a driver for tables
   that no header describes. Everything that would use a device fails with CUDA_ERROR_NOT_INITIALIZED. Each call of a function
   that starts CUDA appends the process's ID to the file STUB_STARTS. Signatures: NVIDIA's cuda.h and cuda_runtime_api.h. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, RUNTIME_NO_DEVICE = 100, INSUFFICIENT_DRIVER = 35, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801 };

static const char *text(const char *name, const char *fallback) {
    const char *found = getenv(name);
    return found && *found ? found : fallback;
}

enum { MOST = 64 };

static int is_mig(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return atoi(text("STUB_MIG", "0")) || (visible && !strncmp(visible, "MIG-", 4));
}

/* The capability of the card with an index of NVML's: the item of a list, or its last one. */
static void capability_of(int index, int *major, int *minor) {
    const char *each = text("STUB_CAPABILITY", "9.0");
    for (const char *comma; index-- && (comma = strchr(each, ',')); each = comma + 1) {}
    sscanf(each, "%d.%d", major, minor);
}

static int speed(int index) {
    int major = 0, minor = 0;
    capability_of(index, &major, &minor);
    return 10 * major + minor;
}

/* The cards in CUDA's order, the fastest first unless CUDA_DEVICE_ORDER says otherwise; returns how many there are. */
static int ordered(int *cards) {
    int count = atoi(text("STUB_GPUS", "1"));
    for (int next = 0; next < count; next++) {
        int place = next;
        if (strcmp(text("CUDA_DEVICE_ORDER", "FASTEST_FIRST"), "PCI_BUS_ID"))
            for (; place && speed(cards[place - 1]) < speed(next); place--) cards[place] = cards[place - 1];
        cards[place] = next;
    }
    return count;
}

/* The cards that a program sees, by CUDA_VISIBLE_DEVICES: up to the first that is not there, none where one is listed twice. */
static int seen(int *cards) {
    int all[MOST], count = ordered(all), found = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (is_mig()) return cards[0] = 0, count > 0; /* one slice */
    if (!visible) return memcpy(cards, all, sizeof all), count;
    for (const char *each = visible; *each;) {
        char *end;
        long number = strtol(each, &end, 10);
        unsigned uuid;
        int card = end != each && number >= 0 && number < count ? all[number] : -1;
        if (sscanf(each, "GPU-%8x", &uuid) == 1 && strcspn(each, ",") >= 12 && uuid < (unsigned)count) card = (int)uuid;
        if (card < 0) break;
        for (int before = 0; before < found; before++)
            if (cards[before] == card) return 0;
        cards[found++] = card;
        each += strcspn(each, ",");
        each += *each == ',';
    }
    return found;
}

static int gpus(void) {
    int cards[MOST];
    return seen(cards);
}

static int card_of(int device) {
    int cards[MOST];
    return device < seen(cards) ? cards[device] : 0;
}

static void starts(void) {
    const char *file = getenv("STUB_STARTS");
    FILE *log = file ? fopen(file, "a") : NULL;
    if (log) fprintf(log, "%d\n", (int)getpid()), fclose(log);
}

static size_t memory(void) {
    return (size_t)(is_mig() ? atol(text("STUB_SLICE_MIB", "9856")) : atol(text("STUB_MEMORY_MIB", "81559"))) << 20;
}

/* The driver. */
int cuInit(unsigned flags) {
    int error = atoi(text("STUB_CUDA_ERROR", "0"));
    (void)flags;
    starts();
    return error ? error : gpus() ? SUCCESS : NO_DEVICE;
}
int cuDriverGetVersion(int *version) { *version = atoi(text("STUB_CUDA", "12040")); return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = gpus(); return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < gpus() ? SUCCESS : INVALID_DEVICE; }
int cuGetErrorString(int code, const char **said) { (void)code; *said = "the stub has no device"; return SUCCESS; }
int cuGetErrorName(int code, const char **said) { (void)code; *said = "CUDA_ERROR_STUB"; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major = 0, minor = 0;
    capability_of(card_of(device), &major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 10 ? 32 : 1024;
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *size, int device) { (void)device; *size = memory(); return SUCCESS; }
int cuDeviceGetUuid(unsigned char *uuid, int device) { /* as nvmlDeviceGetUUID has it in text */
    memset(uuid, 0, 16);
    uuid[3] = (unsigned char)card_of(device), uuid[6] = 0x40, uuid[8] = 0x80;
    return SUCCESS;
}
#define FAILS(name) int name(void) { return NOT_INITIALIZED; }
FAILS(cuModuleLoadData) FAILS(cuModuleGetFunction) FAILS(cuFuncGetAttribute) FAILS(cuFuncSetAttribute) FAILS(cuFuncSetCacheConfig)
FAILS(cuLaunchKernel) FAILS(cuLaunchKernelEx) FAILS(cuCtxGetCurrent) FAILS(cuCtxSetCurrent) FAILS(cuDevicePrimaryCtxRetain)
FAILS(cuCtxGetLimit) FAILS(cuCtxSetLimit) FAILS(cuPointerGetAttribute) FAILS(cuOccupancyMaxActiveClusters)
FAILS(cuTensorMapEncodeTiled) FAILS(cuCtxGetDevice) FAILS(cuMemAlloc_v2) FAILS(cuStreamCreate) FAILS(cuModuleLoad)
FAILS(cuOccupancyMaxActiveBlocksPerMultiprocessor) FAILS(cuLaunchCooperativeKernel) FAILS(cuLinkCreate) FAILS(cuLinkAddData)
FAILS(cuLinkComplete) FAILS(cuMemAddressReserve) FAILS(cuMemRelease) FAILS(cuMemMap) FAILS(cuMemAddressFree) FAILS(cuMemSetAccess)
FAILS(cuMemUnmap) FAILS(cuMemCreate) FAILS(cuMemGetAllocationGranularity) FAILS(cuMemExportToShareableHandle)
FAILS(cuMemImportFromShareableHandle) FAILS(cuMemsetD32Async) FAILS(cuStreamWriteValue32) FAILS(cuMulticastAddDevice)
FAILS(cuMulticastBindMem) FAILS(cuMulticastCreate) FAILS(cuMemRetainAllocationHandle) FAILS(cuMemGetAllocationPropertiesFromHandle)
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { (void)device; *flags = 0, *active = 0; return SUCCESS; }
int cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long flags, int *found) {
    (void)version, (void)flags;
    *address = dlsym(RTLD_DEFAULT, name);
    if (found) *found = *address ? 0 : 1;
    return SUCCESS;
}
int cuGetProcAddress(const char *name, void **address, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, address, version, flags, NULL);
}

/* The runtime, preloaded. */
static int current;
int cudaMemGetInfo(size_t *unused, size_t *total) { *unused = 0, *total = memory(); return SUCCESS; }
int cudaMalloc(void **to, size_t size) { (void)size; *to = NULL; return atoi(text("STUB_FULL", "0")) ? OUT_OF_MEMORY : NOT_SUPPORTED; }
int cudaGetDriverEntryPointByVersion(const char *name, void **address, unsigned version, unsigned long flags, int *found) {
    return cuGetProcAddress_v2(name, address, (int)version, flags, found);
}
int cudaGetDriverEntryPoint(const char *name, void **address, unsigned long flags, int *found) {
    return cuGetProcAddress_v2(name, address, 0, flags, found);
}
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return SUCCESS; }
int cudaThreadExchangeStreamCaptureMode(int *mode) { (void)mode; return SUCCESS; }
int cudaGetDeviceCount(int *count) {
    starts();
    *count = 0;
    if (atoi(text("STUB_CUDA", "12040")) < 12000) return INSUFFICIENT_DRIVER;
    *count = gpus();
    return gpus() ? SUCCESS : RUNTIME_NO_DEVICE;
}
int cudaDriverGetVersion(int *version) { return cuDriverGetVersion(version); }
int cudaGetDevice(int *device) { *device = current; return SUCCESS; }
int cudaSetDevice(int device) { starts(); current = device; return device < gpus() ? SUCCESS : INVALID_DEVICE; }
int cudaGetLastError(void) { return SUCCESS; }
int cudaPeekAtLastError(void) { return SUCCESS; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return SUCCESS; }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { (void)device, (void)peer; *can = 1; return SUCCESS; }
/* The beginning of CUDA 12's cudaDeviceProp, which has 1032 bytes. */
typedef struct {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int threads, thread_sizes[3], grid[3];
    size_t constants;
    int major, minor;
    size_t texture[2];
    int overlap, processors;
    char rest[1032 - 392];
} properties_t;
int cudaGetDeviceProperties_v2(properties_t *properties, int device) {
    starts();
    if (device >= gpus()) return INVALID_DEVICE;
    memset(properties, 0, sizeof *properties);
    strncpy(properties->name, text("STUB_NAME", "Stub GPU"), sizeof properties->name - 1);
    properties->memory = memory();
    properties->warp = 32, properties->processors = 132;
    capability_of(card_of(device), &properties->major, &properties->minor);
    return SUCCESS;
}
int cudaGetDeviceProperties(properties_t *properties, int device) { return cudaGetDeviceProperties_v2(properties, device); }
