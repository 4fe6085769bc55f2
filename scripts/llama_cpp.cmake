# scripts/setup has CMake read this right after llama.cpp's own project() (CMAKE_PROJECT_llama.cpp_INCLUDE), so
# that llama-cpp-python compiles in about half the time.
set(LLAMA_BUILD_COMMON OFF)  # for llama.cpp's programs; the Python package forces it on and does not use it
