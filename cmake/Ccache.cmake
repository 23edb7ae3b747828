# ccache when found. A precompiled header needs the two sloppiness flags, or every compile is a miss. Clones share objects,
# those with debug information too (whose folder may then be another clone's).
find_program(TRIREME_CCACHE ccache)
if(TRIREME_CCACHE)
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${TRIREME_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
