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

static int gpus(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int count = atoi(text("STUB_GPUS", "1"));
    if (atoi(text("STUB_MIG", "0")) || (visible && !strncmp(visible, "MIG-", 4))) return count > 0; /* one slice */
    if (!visible) return count;
    int listed = *visible != 0 && *visible != '-';
    for (const char *each = visible; *each; each++) listed += *each == ',';
    return listed < count ? listed : count;
}

static void starts(void) {
    const char *file = getenv("STUB_STARTS");
    FILE *log = file ? fopen(file, "a") : NULL;
    if (log) fprintf(log, "%d\n", (int)getpid()), fclose(log);
}

static void capability(int *major, int *minor) { sscanf(text("STUB_CAPABILITY", "9.0"), "%d.%d", major, minor); }

/* The driver. */
int cuInit(unsigned flags) { (void)flags; starts(); return gpus() ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = atoi(text("STUB_CUDA", "12040")); return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = gpus(); return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < gpus() ? SUCCESS : INVALID_DEVICE; }
int cuGetErrorString(int code, const char **said) { (void)code; *said = "the stub has no device"; return SUCCESS; }
int cuGetErrorName(int code, const char **said) { (void)code; *said = "CUDA_ERROR_STUB"; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major = 0, minor = 0;
    (void)device;
    capability(&major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 10 ? 32 : 1024;
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
int cudaMemGetInfo(size_t *unused, size_t *total) { *unused = 0, *total = (size_t)atol(text("STUB_MEMORY_MIB", "81559")) << 20; return SUCCESS; }
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
    properties->memory = (size_t)atol(text("STUB_MEMORY_MIB", "81559")) << 20;
    properties->warp = 32, properties->processors = 132;
    capability(&properties->major, &properties->minor);
    return SUCCESS;
}
int cudaGetDeviceProperties(properties_t *properties, int device) { return cudaGetDeviceProperties_v2(properties, device); }
