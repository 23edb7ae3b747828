# LibTorch from a Python wheel as the imported target `trireme::torch`. find_package(Torch) is not used: without a
# CUDA toolkit it stops. Looked for in -DTRIREME_PYTHON, then the cache's virtual environment, then python3.
if(DEFINED ENV{XDG_CACHE_HOME})
  set(_cache $ENV{XDG_CACHE_HOME})
else()
  set(_cache $ENV{HOME}/.cache)
endif()
set(TRIREME_PYTHON "" CACHE FILEPATH "A Python that has torch >= 2.7")
set(_torch "")
foreach(_python ${TRIREME_PYTHON} ${_cache}/trireme/venv/bin/python3 python3)
  execute_process(
    COMMAND ${_python} -c "import importlib.util as u, importlib.metadata as m; s = u.find_spec('torch'); print(s.submodule_search_locations[0] + ';' + m.version('torch'))"
    OUTPUT_VARIABLE _found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE _rc)
  if(_rc EQUAL 0)
    list(GET _found 0 _dir)
    list(GET _found 1 TRIREME_TORCH_VERSION)
    string(REGEX MATCH "^[0-9]+\\.[0-9]+" _short ${TRIREME_TORCH_VERSION})
    if(_short VERSION_GREATER_EQUAL 2.7)
      set(_torch ${_dir})
      set(TRIREME_TORCH_PYTHON ${_python})
      break()
    endif()
  endif()
endforeach()
if(NOT _torch)
  message(FATAL_ERROR "LibTorch not found: run ./run once, or give -DTRIREME_PYTHON=/path/to/python3 that has torch >= 2.7 (pip install torch==2.11.0)")
endif()
set(TRIREME_TORCH_DIR ${_torch})

add_library(trireme::torch INTERFACE IMPORTED)
target_include_directories(trireme::torch SYSTEM INTERFACE ${_torch}/include ${_torch}/include/torch/csrc/api/include)
# As flags: CMake would add its own, conflicting, run paths for full paths.
target_link_libraries(trireme::torch INTERFACE -L${_torch}/lib -ltorch_cpu -lc10)
# By its file name, before the compiler's own -lstdc++: where only libstdc++.a is installed for development the program
# would get a second C++ runtime, whose std::call_once LibTorch would find in place of its own and crash in oneDNN.
target_link_libraries(trireme::torch INTERFACE -l:libstdc++.so.6)
# The wheel's CUDA libraries lie in sibling packages, which its own rpath finds at run time but ld does not.
target_link_options(trireme::torch INTERFACE -Wl,--allow-shlib-undefined -Wl,-rpath,${_torch}/lib)
