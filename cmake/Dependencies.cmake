# Required packages stop the configuration with the package to install; optional ones only switch features.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(MPI REQUIRED COMPONENTS C)

set(HDF5_PREFER_PARALLEL FALSE)
find_package(HDF5 REQUIRED COMPONENTS C)
add_library(trireme::hdf5 INTERFACE IMPORTED)
target_include_directories(trireme::hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(trireme::hdf5 INTERFACE ${HDF5_C_LIBRARIES})

find_package(yaml-cpp REQUIRED)
add_library(trireme::yaml INTERFACE IMPORTED)
if(TARGET yaml-cpp::yaml-cpp)
  target_link_libraries(trireme::yaml INTERFACE yaml-cpp::yaml-cpp)
else()
  target_link_libraries(trireme::yaml INTERFACE yaml-cpp)
endif()

find_package(Eigen3 REQUIRED NO_MODULE)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)

# Image decoders: data sets of images need them, training from a prepared file does not.
pkg_check_modules(PNG IMPORTED_TARGET libpng)
pkg_check_modules(TURBOJPEG IMPORTED_TARGET libturbojpeg)
pkg_check_modules(WEBP IMPORTED_TARGET libwebp)
pkg_check_modules(FREETYPE IMPORTED_TARGET freetype2)
# OpenAI's merges file is gzipped.
pkg_check_modules(ZLIB IMPORTED_TARGET zlib)
# Unicode classes of the CLIP tokenizer.
pkg_check_modules(PCRE2 IMPORTED_TARGET libpcre2-8)
