/* The part of ONNX Runtime's C ABI that operators use: the layout of OrtCustomOp, and functions by their place in OrtApi,
 * which never changes. Source: include/onnxruntime/core/session/onnxruntime_c_api.h of onnxruntime (MIT). */
#ifndef MILORA_ORT_H
#define MILORA_ORT_H
#include <stddef.h>
#include <stdint.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtContext OrtContext;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtShape OrtShape;
typedef struct OrtAllocator OrtAllocator;
typedef struct CustomOp CustomOp;

/* An array of function pointers. */
typedef void *const *Api;

enum { ANY = 0, FLOAT = 1, UINT8 = 2, INT32 = 6, INT64 = 7, HALF = 10 };
enum { REQUIRED = 0, OPTIONAL = 1, VARIADIC = 2 };
enum { INVALID_ARGUMENT = 2 };
/* Since this version of the struct, kernels are made and run by functions that give a status. */
enum { CUSTOM_OP_VERSION = 22 };

struct CustomOp {
  uint32_t version;
  void *(*CreateKernel)(const CustomOp *, Api, const OrtKernelInfo *);
  const char *(*GetName)(const CustomOp *);
  const char *(*GetExecutionProviderType)(const CustomOp *);
  int (*GetInputType)(const CustomOp *, size_t);
  size_t (*GetInputTypeCount)(const CustomOp *);
  int (*GetOutputType)(const CustomOp *, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp *);
  void (*KernelCompute)(void *, OrtContext *);
  void (*KernelDestroy)(void *);
  int (*GetInputCharacteristic)(const CustomOp *, size_t);
  int (*GetOutputCharacteristic)(const CustomOp *, size_t);
  int (*GetInputMemoryType)(const CustomOp *, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp *);
  int (*GetVariadicInputHomogeneity)(const CustomOp *);
  int (*GetVariadicOutputMinArity)(const CustomOp *);
  int (*GetVariadicOutputHomogeneity)(const CustomOp *);
  OrtStatus *(*CreateKernelV2)(const CustomOp *, Api, const OrtKernelInfo *, void **);
  OrtStatus *(*KernelComputeV2)(void *, OrtContext *);
  OrtStatus *(*InferOutputShape)(const CustomOp *, void *);
  int (*GetStartVersion)(const CustomOp *);
  int (*GetEndVersion)(const CustomOp *);
  size_t (*GetMayInplace)(int **, int **);
  void (*ReleaseMayInplace)(int *, int *);
  size_t (*GetAliasMap)(int **, int **);
  void (*ReleaseAliasMap)(int *, int *);
};

#define ORT_CALL(api, place, result, parameters) ((result(*) parameters)(api)[place])

static inline OrtStatus *ort_error(Api api, const char *message) {
  return ORT_CALL(api, 0, OrtStatus *, (int, const char *))(INVALID_ARGUMENT, message);
}
static inline void ort_release_status(Api api, OrtStatus *status) { ORT_CALL(api, 93, void, (OrtStatus *))(status); }
static inline void *ort_data(Api api, const OrtValue *value) {
  void *data = NULL;
  ORT_CALL(api, 51, OrtStatus *, (const OrtValue *, void **))(value, &data);
  return data;
}
/* How many numbers a tensor has. */
static inline size_t ort_count(Api api, const OrtValue *value) {
  OrtShape *shape = NULL;
  size_t count = 0;
  ORT_CALL(api, 65, OrtStatus *, (const OrtValue *, OrtShape **))(value, &shape);
  ORT_CALL(api, 64, OrtStatus *, (const OrtShape *, size_t *))(shape, &count);
  ORT_CALL(api, 99, void, (OrtShape *))(shape);
  return count;
}
/* The sizes of a tensor that has `count` dimensions; 0 where it has not. */
static inline int ort_dims(Api api, const OrtValue *value, int64_t *dims, size_t count) {
  OrtShape *shape = NULL;
  size_t own = 0;
  ORT_CALL(api, 65, OrtStatus *, (const OrtValue *, OrtShape **))(value, &shape);
  ORT_CALL(api, 61, OrtStatus *, (const OrtShape *, size_t *))(shape, &own);
  if (own == count) ORT_CALL(api, 62, OrtStatus *, (const OrtShape *, int64_t *, size_t))(shape, dims, count);
  ORT_CALL(api, 99, void, (OrtShape *))(shape);
  return own == count;
}
static inline OrtStatus *ort_attribute(Api api, const OrtKernelInfo *info, const char *name, int64_t *value) {
  return ORT_CALL(api, 86, OrtStatus *, (const OrtKernelInfo *, const char *, int64_t *))(info, name, value);
}
static inline OrtStatus *ort_attribute_float(Api api, const OrtKernelInfo *info, const char *name, float *value) {
  return ORT_CALL(api, 85, OrtStatus *, (const OrtKernelInfo *, const char *, float *))(info, name, value);
}
/* Of a string; `bytes` counts a zero behind it, and is given first for no text at all. */
static inline OrtStatus *ort_attribute_bytes(Api api, const OrtKernelInfo *info, const char *name, char *text, size_t *bytes) {
  return ORT_CALL(api, 87, OrtStatus *, (const OrtKernelInfo *, const char *, char *, size_t *))(info, name, text, bytes);
}
/* NULL for an optional input that is not there. */
static inline const OrtValue *ort_input(Api api, const OrtContext *context, size_t index) {
  const OrtValue *value = NULL;
  ORT_CALL(api, 90, OrtStatus *, (const OrtContext *, size_t, const OrtValue **))(context, index, &value);
  return value;
}
static inline void *ort_output(Api api, OrtContext *context, size_t index, const int64_t *dims, size_t count) {
  OrtValue *value = NULL;
  ORT_CALL(api, 91, OrtStatus *, (OrtContext *, size_t, const int64_t *, size_t, OrtValue **))(context, index, dims, count, &value);
  return value ? ort_data(api, value) : NULL;
}
static inline void ort_parallel(Api api, const OrtContext *context, void (*task)(void *, size_t), size_t count, void *data) {
  ORT_CALL(api, 274, OrtStatus *, (const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *))(context, task, count, 0, data);
}
static inline OrtAllocator *ort_allocator(Api api) {
  OrtAllocator *allocator = NULL;
  ORT_CALL(api, 78, OrtStatus *, (OrtAllocator **))(&allocator);
  return allocator;
}
/* NULL where there is no memory. */
static inline void *ort_allocate(Api api, size_t bytes) {
  void *data = NULL;
  OrtStatus *status = ORT_CALL(api, 75, OrtStatus *, (OrtAllocator *, size_t, void **))(ort_allocator(api), bytes, &data);
  if (status) ort_release_status(api, status);
  return status ? NULL : data;
}
static inline void ort_free(Api api, void *data) {
  ORT_CALL(api, 76, OrtStatus *, (OrtAllocator *, void *))(ort_allocator(api), data);
}
#endif
