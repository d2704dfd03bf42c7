# Single headers: one file that holds a header and all it includes from lora/, for projects that copy a file.
#
# lora_add_single_headers() adds the target lora_single_header, which writes below <build>/single_header
#   lora.hpp      what <lora/lora.hpp> includes, and needs only Eigen
#   lora_all.hpp  every header but those in mpi/, and needs nlohmann-json too
#
# This file is also the script that does so:
#   cmake -D "HEADERS=lora/lora.hpp;lora/io.hpp" -D OUTPUT=FILE -P cmake/single_header.cmake
#
# An #include is replaced by the text of its file. A file with #pragma once gets an include guard, since its text can
# stand more than once: what is first included below an #if may be needed outside of it too. Files without it are
# repeated at every #include, also where a macro names them, as in kernels/for_each_isa.inc.

if(CMAKE_SCRIPT_MODE_FILE)
  cmake_minimum_required(VERSION 3.22)
endif()
set(LORA_SINGLE_HEADER_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
get_filename_component(LORA_SINGLE_HEADER_ROOT ${CMAKE_CURRENT_LIST_DIR}/.. ABSOLUTE)

# The properties of the run: `text` is what has been written, `written` lists the guarded files that every reader of
# the following line has seen.
function(lora_write text)
  set_property(GLOBAL APPEND_STRING PROPERTY text "${text}")
endfunction()

# lora_inline(<path below include/>)
function(lora_inline path)
  set(file ${LORA_SINGLE_HEADER_ROOT}/include/${path})
  if(NOT EXISTS ${file})
    message(FATAL_ERROR "single header: no file '${path}' below ${LORA_SINGLE_HEADER_ROOT}/include")
  endif()
  get_property(written GLOBAL PROPERTY written)
  if(path IN_LIST written)
    return()
  endif()
  file(READ ${file} rest)
  string(FIND "${rest}" "\n#pragma once\n" once)
  lora_write("// ${path}\n")
  if(NOT once EQUAL -1)
    string(REPLACE "\n#pragma once\n" "\n" rest "${rest}")
    string(MAKE_C_IDENTIFIER "${path}" guard)
    string(TOUPPER ${guard} guard)
    lora_write("#ifndef ${guard}\n#define ${guard}\n")
    set_property(GLOBAL APPEND PROPERTY written ${path})
  endif()

  # For each open #if, what was written before it.
  set(depth 0)
  string(PREPEND rest "\n")
  while(TRUE)
    string(REGEX MATCH "\n[ \t]*#[ \t]*(include|define|if|el|endif)[^\n]*" line "${rest}")
    if(NOT line)
      break()
    endif()
    set(directive ${CMAKE_MATCH_1})
    string(FIND "${rest}" "${line}" begin)
    string(LENGTH "${line}" length)
    math(EXPR end "${begin} + ${length}")
    string(SUBSTRING "${rest}" 0 ${begin} before)
    string(SUBSTRING "${rest}" ${end} -1 rest)
    lora_write("${before}")

    set(included "")
    if(directive STREQUAL "define" AND line MATCHES "define[ \t]+([A-Z_]+)[ \t]+\"(lora/[^\"]+)\"")
      set_property(GLOBAL PROPERTY file_of_${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
    elseif(directive STREQUAL "include" AND line MATCHES "include[ \t]+[\"<](lora/[^\">]+)[\">]")
      set(included ${CMAKE_MATCH_1})
    elseif(directive STREQUAL "include" AND line MATCHES "include[ \t]+([A-Z_]+)")
      get_property(included GLOBAL PROPERTY file_of_${CMAKE_MATCH_1})
      if(NOT included)
        message(FATAL_ERROR "single header: ${path} includes ${CMAKE_MATCH_1}, which names no file")
      endif()
    elseif(directive STREQUAL "if")
      math(EXPR depth "${depth} + 1")
      get_property(written_${depth} GLOBAL PROPERTY written)
    elseif(directive MATCHES "^(el|endif)$")
      set_property(GLOBAL PROPERTY written "${written_${depth}}")
      if(directive STREQUAL "endif")
        math(EXPR depth "${depth} - 1")
      endif()
    endif()
    if(included)
      lora_write("\n")
      lora_inline(${included})
    else()
      lora_write("${line}")
    endif()
  endwhile()
  lora_write("${rest}")
  if(NOT once EQUAL -1)
    lora_write("#endif  // ${guard}\n")
  endif()
endfunction()

function(lora_write_single_header output headers)
  include(${LORA_SINGLE_HEADER_ROOT}/cmake/version.cmake)
  lora_read_version(version)
  file(READ ${LORA_SINGLE_HEADER_ROOT}/LICENSE license)
  string(STRIP "${license}" license)
  string(REPLACE "\n" "\n// " license "${license}")
  string(REPLACE "// \n" "//\n" license "${license}")
  lora_write("// lora ${version} in one file, generated from its headers.\n//\n// ${license}\n#pragma once\n\n")
  foreach(header IN LISTS headers)
    lora_inline(${header})
  endforeach()
  get_property(text GLOBAL PROPERTY text)
  file(WRITE ${output} "${text}")
endfunction()

if(CMAKE_SCRIPT_MODE_FILE)
  if(NOT HEADERS OR NOT OUTPUT)
    message(FATAL_ERROR "usage: cmake -D HEADERS=lora/lora.hpp[;...] -D OUTPUT=FILE -P ${LORA_SINGLE_HEADER_SCRIPT}")
  endif()
  lora_write_single_header(${OUTPUT} "${HEADERS}")
  return()
endif()

function(lora_add_single_headers)
  set(include ${LORA_SINGLE_HEADER_ROOT}/include)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${include}/lora/*.hpp ${include}/lora/*.inc)
  file(GLOB_RECURSE all RELATIVE ${include} CONFIGURE_DEPENDS ${include}/lora/*.hpp)
  list(FILTER all EXCLUDE REGEX "^lora/mpi/")
  set(headers_of_lora lora/lora.hpp)
  set(headers_of_lora_all ${all})
  set(outputs "")
  foreach(name IN ITEMS lora lora_all)
    set(output ${PROJECT_BINARY_DIR}/single_header/${name}.hpp)
    add_custom_command(
      OUTPUT ${output}
      COMMAND ${CMAKE_COMMAND} -D "HEADERS=${headers_of_${name}}" -D OUTPUT=${output} -P ${LORA_SINGLE_HEADER_SCRIPT}
      DEPENDS ${files} ${LORA_SINGLE_HEADER_SCRIPT} ${LORA_SINGLE_HEADER_ROOT}/LICENSE
      COMMENT "Writing single_header/${name}.hpp"
      VERBATIM)
    list(APPEND outputs ${output})
  endforeach()
  add_custom_target(lora_single_header DEPENDS ${outputs})
endfunction()
