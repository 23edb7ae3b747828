# One OBJECT library a folder (a STATIC one would drop self-registering recipes, codecs and communicators).
# Arrows: comm <- compression <- framework <- trainers <- recipes, and data <- framework.
add_library(trireme_options INTERFACE)
target_include_directories(trireme_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(trireme_options INTERFACE
  $<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-Wall;-Wextra;-Wno-unused-parameter;-Wno-restrict;-ffp-contract=off>)
target_compile_definitions(trireme_options INTERFACE TRIREME_VERSION="${PROJECT_VERSION}")
if(TRIREME_SANITIZE)
  # Without optimisation they compile in less than half the time, and nothing is optimised away before it is checked.
  target_compile_options(trireme_options INTERFACE -fsanitize=${TRIREME_SANITIZE} -fno-omit-frame-pointer -O0
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>)  # GCC takes a joined file's parts for headers
  target_link_options(trireme_options INTERFACE -fsanitize=${TRIREME_SANITIZE})
endif()

# What no sanitized test runs is not compiled for them. ThreadSanitizer, which cannot judge torch's operators, gets the
# rooms that do without.
set(trireme_left_out "^$")
if(TRIREME_SANITIZE)
  set(trireme_left_out "/bench/|/trainers/command_line[.]|/trainers/commands/(check|codec|doctor|embed|eval|eval_run|export|generate|keys|logits|report|submit|train)[.]")
  if(TRIREME_SANITIZE STREQUAL "thread")
    string(APPEND trireme_left_out "|/recipes/|/framework/(kernels|optim|gradients|nn|losses|models)/|/framework/[^/]*$"
      "|/trainers/commands/|/trainers/(loop|start|step_report|dry_run|run_folder|ranks|watched)[.]|/trainers/scale/(command|measure)[.]"
      "|/trainers/sample/|/trainers/sweep/(beside|burst|command|executor|job|outcome|passes|pipeline|profile|run|sharded_backbone|stage)[.]")
  endif()
endif()

# What runs over every byte of a file, a tensor or a text: at -O0 under a sanitizer it would be most of a test's time.
set(trireme_hot "/framework/io/|/framework/metrics/scene_score[.]|/comm/crc32c[.]|/compression/stages/|/data/rng[.]")
string(APPEND trireme_hot "|/data/scenes/|/data/text/(text|tokenizer|unicode)[.]|/trainers/sweep/cluster/search[.]")
set(trireme_own_options "/framework/kernels/|/data/image_text/(crop|resize)[.]|/trainers/sweep/packing[.]|/trainers/main[.]")

# Loading the precompiled torch headers costs 3 s: files that name nothing of torch go without.
function(trireme_skip_pch)
  foreach(file ${ARGN})
    file(STRINGS ${file} uses REGEX "at::|torch::|c10::|TORCH_" LIMIT_COUNT 1)
    if(NOT uses)
      set_source_files_properties(${file} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()

# Under a sanitizer most of a file's time is what its headers instantiate: files are compiled several at a time, those
# with options of their own alone.
function(trireme_joined name list options)
  if(NOT ${list})
    return()
  endif()
  execute_process(COMMAND python3 ${CMAKE_SOURCE_DIR}/cmake/join_sources.py ${CMAKE_BINARY_DIR}/joined ${name} ${${list}}
    OUTPUT_VARIABLE joined OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  string(REPLACE "\n" ";" joined "${joined}")
  if(options)
    set_source_files_properties(${joined} PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_OPTIONS "${options}")
  endif()
  set(${list} ${joined} PARENT_SCOPE)
endfunction()

function(trireme_library name)
  cmake_parse_arguments(arg "TORCH" "" "GLOB;EXCLUDE;LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${arg_GLOB})
  list(REMOVE_ITEM sources ${arg_EXCLUDE} "")
  list(FILTER sources EXCLUDE REGEX "${trireme_left_out}")
  if(NOT sources)
    return()
  endif()
  trireme_skip_pch(${sources})
  if(TRIREME_SANITIZE)
    set(alone ${sources})
    set(hot ${sources})
    list(FILTER alone INCLUDE REGEX "${trireme_own_options}")
    list(FILTER hot INCLUDE REGEX "${trireme_hot}")
    list(REMOVE_ITEM hot ${alone} "")
    list(REMOVE_ITEM sources ${alone} ${hot} "")
    trireme_joined(${name} sources "")
    trireme_joined(${name}_hot hot -O1)
    list(APPEND sources ${hot} ${alone})
  endif()
  add_library(${name} OBJECT ${sources})
  target_link_libraries(${name} PUBLIC trireme_options ${arg_LINK})
  if(arg_TORCH)
    target_link_libraries(${name} PUBLIC trireme::torch OpenMP::OpenMP_CXX)
    if(NOT name STREQUAL trireme_framework)
      target_precompile_headers(${name} REUSE_FROM trireme_framework)
    endif()
  endif()
endfunction()

# Kernels for CUDA beside their host twins (comm/twins.h): compiled wherever nvcc is, linked where a GPU is present: then
# the variable `name` holds the library.
function(trireme_twins name)
  set(${name} "" PARENT_SCOPE)
  list(TRANSFORM ARGN APPEND "/*.cu" OUTPUT_VARIABLE folders)
  file(GLOB_RECURSE twins CONFIGURE_DEPENDS ${folders})
  list(FILTER twins EXCLUDE REGEX "/bench/peers/")  # bench/peers/nvcompdx builds its own
  if(NOT TRIREME_CUDA_SOURCES OR NOT twins)
    return()
  endif()
  add_library(${name} OBJECT ${twins})
  target_link_libraries(${name} PUBLIC trireme_options trireme::cuda)
  target_compile_options(${name} PRIVATE -fmad=false)
  if(TRIREME_CUDA_LINK)
    set(${name} ${name} PARENT_SCOPE)
  endif()
endfunction()

# The CUDA part of comm: compiled on its own, since it may be compiled and not linked.
file(GLOB cuda_sources CONFIGURE_DEPENDS comm/cuda/*.cpp)
file(GLOB cuda_kernels CONFIGURE_DEPENDS comm/cuda/*.cu)
trireme_library(trireme_comm GLOB comm/*.cpp EXCLUDE ${cuda_sources} LINK MPI::MPI_C Threads::Threads)
if(TRIREME_CUDA_SOURCES)
  trireme_skip_pch(${cuda_sources})
  add_library(trireme_cuda OBJECT ${cuda_sources} ${cuda_kernels})
  target_link_libraries(trireme_cuda PUBLIC trireme_options trireme::cuda)
  target_include_directories(trireme_cuda SYSTEM PRIVATE ${MPI_C_INCLUDE_DIRS})
endif()
trireme_library(trireme_compression GLOB compression/*.cpp LINK Threads::Threads)
set(trireme_comm_parts trireme_comm trireme_compression)
if(TRIREME_CUDA_LINK)
  list(APPEND trireme_comm_parts trireme_cuda)
endif()
trireme_twins(trireme_codec_twins compression)
list(APPEND trireme_comm_parts ${trireme_codec_twins})
file(GLOB cuda_sources CONFIGURE_DEPENDS framework/*_cuda.cpp)
if(TRIREME_CUDA_LINK)
  set(cuda_sources "")
endif()
trireme_library(trireme_framework TORCH GLOB framework/*.cpp
  EXCLUDE ${cuda_sources} LINK MPI::MPI_C Threads::Threads trireme::hdf5 trireme::yaml nlohmann_json::nlohmann_json Eigen3::Eigen)
if(TRIREME_CUDA_LINK)
  target_link_libraries(trireme_framework PUBLIC trireme::cuda)
endif()
target_precompile_headers(trireme_framework PRIVATE framework/base/torch_pch.h)
# Kernels are built for this machine's vector units (-DTRIREME_MARCH=x86-64-v3 for a mixed cluster), and may fuse
# multiply-adds: they are compared with references by tolerance, never bit by bit across machines.
set(TRIREME_MARCH native CACHE STRING "-march of the CPU kernels")
file(GLOB kernels CONFIGURE_DEPENDS framework/kernels/*.cpp)
set_source_files_properties(${kernels} PROPERTIES SKIP_PRECOMPILE_HEADERS ON
  COMPILE_OPTIONS "-march=${TRIREME_MARCH};-ffp-contract=fast;-fno-math-errno;-fno-trapping-math;-fopenmp;-Wno-uninitialized;-Wno-maybe-uninitialized")
trireme_library(trireme_data TORCH GLOB data/*.cpp
  LINK Threads::Threads trireme::hdf5 nlohmann_json::nlohmann_json)
# Equal to its CUDA twin bit by bit: nothing is contracted.
set(pixels ${CMAKE_SOURCE_DIR}/data/image_text/crop.cpp ${CMAKE_SOURCE_DIR}/data/image_text/resize.cpp
  ${CMAKE_SOURCE_DIR}/framework/kernels/quickshift.cpp ${CMAKE_SOURCE_DIR}/framework/kernels/region_choice.cpp)
set_source_files_properties(${pixels} PROPERTIES SKIP_PRECOMPILE_HEADERS ON
  COMPILE_OPTIONS "-march=${TRIREME_MARCH};-fno-math-errno;-fno-trapping-math;-Wno-uninitialized;-Wno-maybe-uninitialized")
if(TRIREME_SANITIZE)
  set_property(SOURCE ${kernels} ${pixels} tests/unit/checkpoint_test.cpp APPEND PROPERTY COMPILE_OPTIONS -O1)
  set_source_files_properties(tests/unit/checkpoint_test.cpp PROPERTIES SKIP_PRECOMPILE_HEADERS ON)  # made at -O0
endif()
foreach(lib PNG TURBOJPEG WEBP FREETYPE PCRE2 ZLIB)
  if(${lib}_FOUND)
    target_link_libraries(trireme_data PUBLIC PkgConfig::${lib})
    target_compile_definitions(trireme_data PRIVATE TRIREME_HAS_${lib})
  endif()
endforeach()
foreach(part trainers bench)
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${part}/*_cuda.cpp)
  if(TRIREME_CUDA_LINK)
    set(cuda_sources "")
  endif()
  trireme_library(trireme_${part} TORCH GLOB ${part}/*.cpp EXCLUDE ${cuda_sources}
    LINK MPI::MPI_C Threads::Threads trireme::hdf5 CLI11::CLI11 nlohmann_json::nlohmann_json)
endforeach()
get_target_property(eigen Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
set_source_files_properties(trainers/sweep/packing.cpp PROPERTIES INCLUDE_DIRECTORIES "${eigen}")
if(TRIREME_CUDA_LINK AND TARGET trireme_bench)
  target_link_libraries(trireme_bench PUBLIC trireme::cuda)
endif()
# `trireme submit` carries the template: an installed program needs no file beside it.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/slurm/launch.sbatch)
file(READ ${CMAKE_SOURCE_DIR}/slurm/launch.sbatch launch_sbatch)
configure_file(${CMAKE_SOURCE_DIR}/trainers/commands/launch_sbatch.cpp.in ${CMAKE_BINARY_DIR}/launch_sbatch.cpp @ONLY)
set_source_files_properties(${CMAKE_BINARY_DIR}/launch_sbatch.cpp PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
target_sources(trireme_trainers PRIVATE ${CMAKE_BINARY_DIR}/launch_sbatch.cpp)
trireme_library(trireme_recipes TORCH GLOB recipes/*.cpp LINK MPI::MPI_C nlohmann_json::nlohmann_json)
if(TRIREME_RECIPES AND TARGET trireme_recipes)
  file(GLOB sources CONFIGURE_DEPENDS ${TRIREME_RECIPES}/*/*.cpp)  # not below: a build folder may lie there
  target_sources(trireme_recipes PRIVATE ${sources})
endif()

trireme_twins(trireme_cuda_twins data framework bench)

set(trireme_parts ${trireme_comm_parts} ${trireme_cuda_twins})
foreach(part data framework trainers bench recipes)
  if(TARGET trireme_${part})
    list(APPEND trireme_parts trireme_${part})
  endif()
endforeach()

# The program; Tests.cmake makes a shared library of the same objects.
set(main_file ${CMAKE_SOURCE_DIR}/trainers/main.cpp)
get_target_property(sources trireme_trainers SOURCES)
list(FILTER sources EXCLUDE REGEX "trainers/main.cpp$")
set_property(TARGET trireme_trainers PROPERTY SOURCES ${sources})
add_executable(trireme ${main_file})
target_link_libraries(trireme PRIVATE ${trireme_parts})
install(TARGETS trireme RUNTIME DESTINATION bin)

# The codec for other programs: libtrireme_codec.so (compression/c_api.h, no torch) and libtrireme_torch.so
# (torch.ops.trireme, python/). Of comm they take what the codec names, by way of an archive: nothing of MPI.
if(NOT TRIREME_SANITIZE)
  add_library(trireme_comm_archive STATIC $<TARGET_OBJECTS:trireme_comm>)
  set(objects trireme_compression ${trireme_codec_twins})
  list(TRANSFORM objects REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>")
  add_library(trireme_codec SHARED ${objects})
  target_include_directories(trireme_codec INTERFACE ${CMAKE_SOURCE_DIR})
  # libstdc++.so.6 as in LibTorch.cmake: a second C++ runtime in a library that Python loads frees what the first one made.
  target_link_libraries(trireme_codec PRIVATE trireme_comm_archive Threads::Threads -l:libstdc++.so.6)
  add_library(trireme_torch SHARED python/torch_ops.cpp)
  target_link_libraries(trireme_torch PRIVATE trireme_options trireme_codec trireme::torch)
  if(TRIREME_CUDA_LINK)
    target_link_libraries(trireme_codec PRIVATE trireme::cuda)
  endif()
  set_target_properties(trireme_codec trireme_torch PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib
    INSTALL_RPATH "$ORIGIN" POSITION_INDEPENDENT_CODE ON)
  install(TARGETS trireme_codec trireme_torch LIBRARY DESTINATION lib OPTIONAL)  # ./run builds the program alone
  install(FILES compression/c_api.h DESTINATION include/trireme)
endif()
install(DIRECTORY recipes/ DESTINATION share/trireme/recipes FILES_MATCHING
  PATTERN "*.yaml" PATTERN "*.json" PATTERN "*.txt" PATTERN "*.safetensors")  # with the small models and shapes they name
install(DIRECTORY slurm/ DESTINATION share/trireme/slurm)
