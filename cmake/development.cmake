# How the project's own programs are built. Nothing here reaches a user of lora::lora.

option(LORA_WARNINGS_AS_ERRORS "Make every warning in the project's own programs an error" OFF)
set(LORA_SANITIZE "" CACHE STRING "Sanitizers of the project's own programs: 'address,undefined' or 'thread'")

if(PROJECT_IS_TOP_LEVEL)
  get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
  if(NOT multi_config AND NOT CMAKE_BUILD_TYPE)
    set_property(CACHE CMAKE_BUILD_TYPE PROPERTY VALUE Release)
    set(CMAKE_BUILD_TYPE Release)
  endif()
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  # The library promises to be fast with this level.
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")

  # Use ccache if present. Precompiled headers need settings for both ccache and the compiler.
  find_program(LORA_CCACHE ccache)
  mark_as_advanced(LORA_CCACHE)
  if(LORA_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER
        ${CMAKE_COMMAND} -E env
        CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
        CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${LORA_CCACHE})
    add_compile_options($<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
    add_compile_options("$<$<CXX_COMPILER_ID:Clang>:SHELL:-Xclang -fno-pch-timestamp>")
  endif()
endif()

add_library(lora_warnings INTERFACE)
if(MSVC)
  set(warnings /W4 /WX)
else()
  set(warnings -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
endif()
if(NOT LORA_WARNINGS_AS_ERRORS)
  list(REMOVE_ITEM warnings /WX -Werror)
endif()
target_compile_options(lora_warnings INTERFACE ${warnings})

add_library(lora_development INTERFACE)
target_link_libraries(lora_development INTERFACE lora_warnings)
# g++ spends a fifth of its time on these sources in its own garbage collector.
target_compile_options(lora_development INTERFACE $<$<CXX_COMPILER_ID:GNU>:--param=ggc-min-heapsize=1000000>)
if(LORA_SANITIZE)
  target_compile_options(
    lora_development
    INTERFACE -fsanitize=${LORA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -gline-tables-only
              $<$<CXX_COMPILER_ID:Clang>:-fsanitize-ignorelist=${PROJECT_SOURCE_DIR}/cmake/sanitizer_ignores.txt>)
  target_link_options(lora_development INTERFACE -fsanitize=${LORA_SANITIZE})
endif()

# With the warnings and sanitizers of the programs that link it. Their kernels would crawl without optimisation.
target_link_libraries(lora_compiled PRIVATE $<BUILD_INTERFACE:lora_development>)
if(LORA_SANITIZE)
  target_compile_options(lora_compiled PRIVATE -O1)
endif()

# find_package for packages that only the project's own programs need, with an error that says what to install.
macro(lora_require package target debian_package)
  if(NOT TARGET ${target})
    find_package(${package} QUIET)
    if(NOT TARGET ${target})
      message(
        FATAL_ERROR
          "${package} was not found (Debian: ${debian_package}). It is needed by what the options LORA_BUILD_TESTS, "
          "LORA_BUILD_BENCHMARKS and LORA_BUILD_EXAMPLES switch on, not by the library.")
    endif()
  endif()
endmacro()

# An executable of this project: C++20 without extensions, warnings, sanitizers.
# lora_add_program(<target> <name of the file> <folder below the build directory> <sources>...)
function(lora_add_program target name folder)
  add_executable(${target} ${ARGN})
  target_link_libraries(${target} PRIVATE lora_development)
  set_target_properties(
    ${target}
    PROPERTIES CXX_STANDARD 20
               CXX_STANDARD_REQUIRED ON
               CXX_EXTENSIONS OFF
               OUTPUT_NAME ${name}
               RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/${folder})
endfunction()
