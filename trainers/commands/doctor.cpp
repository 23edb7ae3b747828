// `trireme doctor`: what was found, what is missing and how to get it.

#include "comm/device.h"
#include "data/libraries.h"
#include "framework/command.h"
#include "framework/recipe.h"

#include <ATen/ATen.h>
#include <torch/version.h>

#include <hdf5.h>
#define OMPI_SKIP_MPICXX 1
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <thread>

#include <mpi.h>

namespace trireme {
namespace {

bool on_path(const std::string& program) {
  std::stringstream path(std::getenv("PATH") ? std::getenv("PATH") : "");
  for (std::string dir; std::getline(path, dir, ':');) {
    std::error_code ignored;
    if (std::filesystem::exists(dir + "/" + program, ignored)) return true;
  }
  return false;
}

void row(const char* what, const std::string& value) { std::printf("  %-12s %s\n", what, value.c_str()); }

int doctor() {
  std::printf("trireme %s\n", TRIREME_VERSION);
  row("LibTorch", TORCH_VERSION);
  char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(mpi, &length);
  row("MPI", std::string(mpi, std::string_view(mpi, length).find(',')));
  row("mpirun", on_path("mpirun") ? "found" : "missing: --ranks needs it (openmpi-bin)");
  unsigned a = 0, b = 0, c = 0;
  H5get_libversion(&a, &b, &c);
  row("HDF5", std::to_string(a) + "." + std::to_string(b) + "." + std::to_string(c));
  for (const auto& library : libraries())
    row(std::string(library.name).c_str(), library.present ? "found"
                                                           : "not in this build: " + std::string(library.without) +
                                                                 " (" + std::string(library.package) + ")");
  const DeviceRuntime* cuda = device_runtime();
  row("GPU", !cuda                ? "not in this build: needs a CUDA toolkit and the preset cuda"
             : cuda->count() == 0 ? "none found (nvidia-smi tells what the driver sees)"
                                  : std::to_string(cuda->count()) + " found");
  const std::string nccl = cuda ? cuda->nccl_version() : "";
  row("NCCL", !nccl.empty() ? nccl : cuda ? "missing: libnccl.so.2 (libnccl2)" : "not in this build");
  row("Slurm", on_path("sbatch") ? "found" : "not found (slurm-client), only needed on a cluster");
  row("cores", std::to_string(std::thread::hardware_concurrency()));
  std::string names;
  for (const auto& n : Recipes::names()) names += n + " ";
  row("recipes", names);
  return 0;
}

const Commands::Entry registered({"doctor", "what was found, what is missing and how to get it",
                                  [](CommandOptions&) { return [](const CommandLine&) { return doctor(); }; }});

}  // namespace
}  // namespace trireme
