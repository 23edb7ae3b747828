# tests/<label>/<name>_test.cpp is one executable and one ctest entry with that label and a timeout.
# Tests that include no torch link only what they name: `// links: comm` in the first line picks the torch-free objects (comm and compression).
find_package(GTest REQUIRED)

# All objects as one shared library.
set(objects ${trireme_parts})
list(TRANSFORM objects REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>")
add_library(trireme_all SHARED ${objects})
target_link_libraries(trireme_all PUBLIC ${trireme_parts})
set(objects ${trireme_comm_parts})
list(TRANSFORM objects REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>")
add_library(trireme_comm_only SHARED ${objects})
target_link_libraries(trireme_comm_only PUBLIC ${trireme_comm_parts})

# The program with a recipe that goes wrong on purpose.
add_executable(trireme_faulty ${main_file} tests/fault/recipe/faulty.cpp)
target_link_libraries(trireme_faulty PRIVATE ${trireme_parts})
set_target_properties(trireme_faulty PROPERTIES POSITION_INDEPENDENT_CODE OFF)  # as the precompiled header is
target_compile_options(trireme_faulty PRIVATE -fPIC)
target_precompile_headers(trireme_faulty REUSE_FROM trireme_framework)

set(test_environment OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  TRIREME_BINARY=$<TARGET_FILE:trireme> TRIREME_FAULTY=$<TARGET_FILE:trireme_faulty> TRIREME_SOURCE=${CMAKE_SOURCE_DIR}
  LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp
  TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp:halt_on_error=1)

set(seconds 300)
if(TRIREME_SANITIZE)
  set(seconds 900)  # a test takes up to ten times as long
endif()
add_custom_target(sanitized_tests)
foreach(label unit contract mpi golden fault net slurm gpu)
  set(limit ${seconds})
  if(label STREQUAL "fault")
    set(limit 900)  # minutes of programs, each of which has a limit of its own; on a busy machine twice as long
  endif()
  file(GLOB files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${label}/*_test.cpp)
  foreach(file ${files})
    get_filename_component(name ${file} NAME_WE)
    if(name MATCHES "_cuda_test$" AND NOT TRIREME_CUDA_LINK)
      continue()  # names CUDA itself
    endif()
    file(STRINGS ${file} first LIMIT_COUNT 1)
    trireme_skip_pch(${file})
    file(STRINGS ${file} uses_torch REGEX "at::|torch::|framework/(session.h|models/)" LIMIT_COUNT 1)
    add_executable(${name} ${file})
    # As the objects are compiled, or the precompiled header would not fit.
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE -fPIC)
    if(NOT TRIREME_SANITIZE)
      target_compile_options(${name} PRIVATE -O1)  # compiles in two thirds of the time; what is tested is in the library
    endif()
    if(first MATCHES "links: comm")
      target_link_libraries(${name} PRIVATE trireme_options MPI::MPI_C Threads::Threads GTest::gtest GTest::gtest_main)
      target_link_libraries(${name} PRIVATE $<TARGET_LINKER_FILE:trireme_comm_only>)
      add_dependencies(${name} trireme_comm_only)
    else()
      target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
      target_link_libraries(${name} PRIVATE trireme_options trireme::torch OpenMP::OpenMP_CXX MPI::MPI_C
        Threads::Threads trireme::hdf5 trireme::yaml nlohmann_json::nlohmann_json GTest::gtest GTest::gtest_main)
      target_link_libraries(${name} PRIVATE $<TARGET_LINKER_FILE:trireme_all>)
      add_dependencies(${name} trireme_all)
      target_precompile_headers(${name} REUSE_FROM trireme_framework)
    endif()
    if(name MATCHES "_cuda_test$")
      target_link_libraries(${name} PRIVATE trireme::cuda)
    endif()
    # MPI itself is not built with ThreadSanitizer: the loopback backend is what it can judge.
    set(arguments "")
    if(TRIREME_SANITIZE STREQUAL "thread" AND label STREQUAL "contract")
      set(arguments --gtest_filter=*loopback*)
    endif()
    add_test(NAME ${label}.${name} COMMAND ${name} ${arguments})
    set(labels ${label})
    # Unit and loopback tests also run under the sanitizers. ThreadSanitizer sees false races in torch's own OpenMP
    # threads, so there only tests that do not load torch's operators count.
    if(label MATCHES "unit|contract" AND (NOT TRIREME_SANITIZE STREQUAL "thread" OR NOT uses_torch))
      list(APPEND labels sanitized)
      add_dependencies(sanitized_tests ${name})
    endif()
    set_tests_properties(${label}.${name} PROPERTIES LABELS "${labels}" TIMEOUT ${limit} ENVIRONMENT "${test_environment}")
    if(label MATCHES "mpi|fault|golden|net|slurm|gpu")
      set_tests_properties(${label}.${name} PROPERTIES RUN_SERIAL TRUE)
      add_dependencies(${name} trireme)
      if(label MATCHES "fault|gpu")
        add_dependencies(${name} trireme_faulty)
      endif()
    endif()
    if(label STREQUAL "net")
      add_dependencies(${name} communicator_test)  # runs it on the hosts
    endif()
  endforeach()
endforeach()

# Preloaded into the program, it takes file locks away.
add_library(no_locks MODULE tests/fault/no_locks.c)
add_dependencies(data_input_test no_locks)
target_compile_definitions(data_input_test PRIVATE TRIREME_NO_LOCKS="$<TARGET_FILE:no_locks>")
# Preloaded into the ranks, it makes one of them announce a code of a size that cannot be.
add_library(forged_sizes MODULE tests/fault/forged_sizes.c)
target_link_libraries(forged_sizes PRIVATE MPI::MPI_C)
add_dependencies(dlrm_input_test forged_sizes)
target_compile_definitions(dlrm_input_test PRIVATE TRIREME_FORGED_SIZES="$<TARGET_FILE:forged_sizes>")

# The communication layer is portable MPI: where MPICH is installed as well, its tests run against that too.
find_program(TRIREME_MPICH_MPIEXEC mpiexec.mpich)
pkg_check_modules(MPICH IMPORTED_TARGET mpich)
if(TRIREME_MPICH_MPIEXEC AND MPICH_FOUND AND NOT TRIREME_SANITIZE)
  set(TRIREME_MPICH_TESTS ON)
  get_target_property(sources trireme_comm SOURCES)
  add_library(trireme_comm_mpich SHARED ${sources})
  target_link_libraries(trireme_comm_mpich PUBLIC trireme_options Threads::Threads PkgConfig::MPICH)
  foreach(test contract/communicator_test contract/mismatch_test mpi/comm_mpi_test)
    get_filename_component(name ${test} NAME)
    add_executable(${name}_mpich tests/${test}.cpp)
    target_link_libraries(${name}_mpich PRIVATE trireme_comm_mpich GTest::gtest GTest::gtest_main)
    target_compile_definitions(${name}_mpich PRIVATE TRIREME_TEST_MPIEXEC="${TRIREME_MPICH_MPIEXEC}")
    add_test(NAME mpi.${name}_mpich COMMAND ${name}_mpich --gtest_filter=-*loopback*)
    set_tests_properties(mpi.${name}_mpich PROPERTIES LABELS mpi TIMEOUT ${seconds} RUN_SERIAL TRUE ENVIRONMENT "${test_environment}")
  endforeach()
endif()

# The statistics of the studies (bench/studies).
find_program(python3 python3)
if(python3 AND NOT TRIREME_SANITIZE)
  foreach(study study lora_grid)
    add_test(NAME unit.${study}_statistics COMMAND ${python3} ${CMAKE_SOURCE_DIR}/bench/studies/${study}.py --self-test)
    set_tests_properties(unit.${study}_statistics PROPERTIES LABELS unit TIMEOUT 60)
  endforeach()
endif()

# The codec from C, in a release build with nothing beside it; and as operators of PyTorch, from the Python whose torch it
# was built with.
add_executable(codec_c_api tests/unit/codec_c_api.c)
target_compile_options(codec_c_api PRIVATE -std=c11 -pedantic)
target_link_libraries(codec_c_api PRIVATE trireme_options m)
if(TARGET trireme_codec)
  target_link_libraries(codec_c_api PRIVATE trireme_codec)
else()
  target_link_libraries(codec_c_api PRIVATE $<TARGET_LINKER_FILE:trireme_comm_only>)
  add_dependencies(codec_c_api trireme_comm_only)
endif()
add_test(NAME unit.codec_c_api COMMAND codec_c_api)
set_tests_properties(unit.codec_c_api PROPERTIES LABELS "unit;sanitized" TIMEOUT 60 ENVIRONMENT "${test_environment}")
add_dependencies(sanitized_tests codec_c_api)
if(TARGET trireme_torch)
  add_test(NAME unit.torch_ops COMMAND ${TRIREME_TORCH_PYTHON} ${CMAKE_SOURCE_DIR}/tests/python/torch_ops_test.py
    $<TARGET_FILE:trireme_torch> ${CMAKE_SOURCE_DIR}/docs/codecs.md)
  set_tests_properties(unit.torch_ops PROPERTIES LABELS unit TIMEOUT 120 SKIP_RETURN_CODE 77)
endif()
