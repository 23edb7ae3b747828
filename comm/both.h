// TRIREME_BOTH: a function that a kernel for CUDA and its twin on the host share. (C++17: nvcc sees it.)
#pragma once

#ifdef __CUDACC__
#define TRIREME_BOTH __host__ __device__
#else
#define TRIREME_BOTH
#endif
