# Compiles every header alone, included twice, without generating code. Then includes all headers in two translation
# units and links them, which finds definitions that are not inline.
#
# lora_add_header_checks(<folder>) adds the target lora_headers, which fails to build when a header does, and the test
# Headers.AllLinked among those of <folder>.

# lora_syntax_command(<variable>): the compiler's command up to the file.
function(lora_syntax_command result)
  set(command ${CMAKE_CXX_COMPILER} -std=c++20 -fsyntax-only -I${PROJECT_SOURCE_DIR}/include)
  get_target_property(eigen Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
  set(directories ${eigen})
  foreach(target IN ITEMS nlohmann_json::nlohmann_json MPI::MPI_CXX)
    if(TARGET ${target})
      get_target_property(of_target ${target} INTERFACE_INCLUDE_DIRECTORIES)
      if(of_target)
        list(APPEND directories ${of_target})
      endif()
    endif()
  endforeach()
  list(REMOVE_DUPLICATES directories)
  # The compiler knows its own folder; naming it again would change the order of folders.
  list(REMOVE_ITEM directories /usr/include)
  foreach(directory IN LISTS directories)
    list(APPEND command -isystem ${directory})
  endforeach()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND command --param=ggc-min-heapsize=1000000)
  endif()
  # g++ rejects a precompiled header that was made with other warnings.
  get_target_property(warnings lora_warnings INTERFACE_COMPILE_OPTIONS)
  list(APPEND command ${warnings} -Winvalid-pch)
  set(${result} "${command}" PARENT_SCOPE)
endfunction()

# Precompiles what nearly every header includes through core/types.hpp. Both compilers find the .gch beside it. Defines
# the target lora_syntax_precompiled and sets `result` to the path to give to -include.
function(lora_add_syntax_precompiled result)
  set(header ${PROJECT_BINARY_DIR}/syntax/common.hpp)
  if(NOT TARGET lora_syntax_precompiled)
    lora_write_if_different(${header} "#include <Eigen/Core>\n")
    lora_syntax_command(command)
    list(REMOVE_ITEM command -fsyntax-only)
    add_custom_command(
      OUTPUT ${header}.gch
      COMMAND ${command} -x c++-header ${header} -o ${header}.gch
      DEPENDS ${header}
      COMMENT "Precompiling what the headers include"
      VERBATIM)
    add_custom_target(lora_syntax_precompiled DEPENDS ${header}.gch)
  endif()
  set(${result} ${header} PARENT_SCOPE)
endfunction()

function(lora_add_header_checks folder)
  file(GLOB_RECURSE headers RELATIVE ${PROJECT_SOURCE_DIR}/include CONFIGURE_DEPENDS
       ${PROJECT_SOURCE_DIR}/include/lora/*.hpp)
  if(NOT TARGET MPI::MPI_CXX)
    list(FILTER headers EXCLUDE REGEX "^lora/mpi/")
  endif()
  lora_syntax_command(command)
  lora_add_syntax_precompiled(precompiled)
  set(units ${CMAKE_CURRENT_BINARY_DIR}/headers)
  set(stamps "")
  set(all "")
  foreach(header IN LISTS headers)
    set(unit ${units}/${header}.cpp)
    lora_write_if_different(${unit} "#include \"${header}\"\n#include \"${header}\"\n")
    string(APPEND all "#include \"${header}\"\n")
    add_custom_command(
      OUTPUT ${unit}.checked
      COMMAND ${command} -include ${precompiled} -MD -MF ${unit}.d -MT ${unit}.checked ${unit}
      COMMAND ${CMAKE_COMMAND} -E touch ${unit}.checked
      DEPENDS ${unit} ${precompiled}.gch
      DEPFILE ${unit}.d
      COMMENT "Checking ${header}"
      VERBATIM)
    list(APPEND stamps ${unit}.checked)
  endforeach()
  add_custom_target(lora_headers_alone DEPENDS ${stamps})
  add_dependencies(lora_headers_alone lora_syntax_precompiled)

  lora_write_if_different(${units}/all.cpp "${all}")
  lora_write_if_different(${units}/main.cpp "${all}int main() {}\n")
  lora_add_program(lora_headers_linked headers_linked tests ${units}/all.cpp ${units}/main.cpp)
  target_compile_options(lora_headers_linked PRIVATE -O0)
  target_link_libraries(lora_headers_linked PRIVATE lora::io Threads::Threads)
  if(TARGET MPI::MPI_CXX)
    target_link_libraries(lora_headers_linked PRIVATE lora::mpi)
  endif()
  add_test(NAME Headers.AllLinked COMMAND lora_headers_linked)
  set_tests_properties(Headers.AllLinked PROPERTIES LABELS ${folder})

  add_custom_target(lora_headers)
  add_dependencies(lora_headers lora_headers_alone lora_headers_linked)
  lora_folder_needs(${folder} lora_headers)
endfunction()
