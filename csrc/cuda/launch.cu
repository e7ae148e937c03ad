#include <atomic>

#include "csrc/cuda/counters.h"
#include "csrc/cuda/launch.h"
#include "kernels/cuda/lit_loss.cuh"
#include "kernels/cuda/rescale.cuh"

namespace lit_fast::cuda {
namespace {

constexpr int kMaxDevices = 64;

// blocks[device]: how many blocks of a kernel the device runs at a time; 0 as long as nobody has asked.
template <typename Kernel>
cudaError_t limits_of(Kernel kernel, std::atomic<int> (&blocks)[kMaxDevices], Limits* limits) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) {
    return error;
  }
  std::atomic<int>& known = blocks[device % kMaxDevices];
  if (known == 0 || device >= kMaxDevices) {
    int of_sm = 0, sms = 0;
    if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_sm, kernel, kThreads, 0)) {
      return error;
    }
    if (const cudaError_t error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) {
      return error;
    }
    known = of_sm * sms;
  }
  *limits = {kThreads, known};
  return cudaSuccess;
}

// The counter for a call that is about to be launched on `stream`, or captured there.
cudaError_t counter_of(cudaStream_t stream, int* counter) {
  static Counters counters;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (const cudaError_t error = cudaStreamIsCapturing(stream, &status)) {
    return error;
  }
  if (status != cudaStreamCaptureStatusNone) {
    *counter = counters.of_capture();
    return cudaSuccess;
  }
  int device = 0;
  unsigned long long id = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) {
    return error;
  }
  if (const cudaError_t error = cudaStreamGetId(stream, &id)) {
    return error;
  }
  *counter = counters.of_stream(device, id);
  return cudaSuccess;
}

}  // namespace

cudaError_t limits_of_loss(Kernel kernel, Limits* limits) {
  static std::atomic<int> blocks[kKernels][kMaxDevices];
  return limits_of(kernel_for(kernel), blocks[static_cast<int>(kernel)], limits);
}

cudaError_t limits_of_rescaling(Limits* limits) {
  static std::atomic<int> blocks[kMaxDevices];
  return limits_of(rescale, blocks, limits);
}

cudaError_t run(std::vector<Launch>& launches, Kernel kernel, void* workspace, cudaStream_t stream) {
  int counter = 0;
  if (const cudaError_t error = counter_of(stream, &counter)) {
    return error;
  }
  use_workspace(launches, workspace, counter);
  for (const Launch& launch : launches) {
    kernel_for(kernel)<<<launch.blocks, kThreads, 0, stream>>>(launch.problem);
    if (const cudaError_t error = cudaGetLastError()) {
      return error;
    }
  }
  return cudaSuccess;
}

cudaError_t run(const std::vector<RescalingLaunch>& launches, cudaStream_t stream) {
  for (const RescalingLaunch& launch : launches) {
    rescale<<<launch.blocks, kThreads, 0, stream>>>(launch.rescaling);
    if (const cudaError_t error = cudaGetLastError()) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace lit_fast::cuda
