# Makes llama-cpp-python compile in half the time (141 s for 268 on 2 cores). scripts/setup has CMake read it
# right after llama.cpp's own project() (CMAKE_PROJECT_llama.cpp_INCLUDE).
set(LLAMA_BUILD_COMMON OFF)  # for llama.cpp's programs; the Python package forces it on and does not use it
# The model architectures are 140 small files with the same large headers: compile a dozen at a time.
cmake_language(DEFER CALL set_target_properties llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
