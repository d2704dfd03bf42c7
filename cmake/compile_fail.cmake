# Tests that a static assertion or constraint rejects what it should.
#
# lora_add_compile_fail_test(<name> <file> <pattern>) adds two tests. With LORA_SHOULD_FAIL defined, <file> must not
# compile and the compiler must print text that matches the regular expression <pattern>. Without it, the same file
# must compile, which proves that nothing else in it is wrong.
#
# This file is also the script that those tests run.

if(CMAKE_SCRIPT_MODE_FILE)
  set(includes "")
  foreach(directory IN LISTS INCLUDES)
    list(APPEND includes -isystem ${directory})
  endforeach()
  set(command ${CXX} -std=c++20 -fsyntax-only -I${LORA_INCLUDE} ${includes})
  if(SHOULD_FAIL)
    list(APPEND command -DLORA_SHOULD_FAIL)
  endif()
  execute_process(
    COMMAND ${command} ${FILE}
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  if(SHOULD_FAIL)
    if(result EQUAL 0)
      message(FATAL_ERROR "${FILE} compiles with LORA_SHOULD_FAIL, and must not")
    elseif(NOT output MATCHES "${PATTERN}")
      message(FATAL_ERROR "${FILE} is refused, but without a message that matches '${PATTERN}':\n${output}")
    endif()
  elseif(NOT result EQUAL 0)
    message(FATAL_ERROR "${FILE} does not compile without LORA_SHOULD_FAIL:\n${output}")
  endif()
  return()
endif()

set(LORA_COMPILE_FAIL_SCRIPT ${CMAKE_CURRENT_LIST_FILE})

function(lora_add_compile_fail_test name file pattern)
  foreach(case IN ITEMS Refused Twin)
    if(case STREQUAL "Refused")
      set(should_fail ON)
    else()
      set(should_fail OFF)
    endif()
    add_test(
      NAME CompileFail.${name}.${case}
      COMMAND
        ${CMAKE_COMMAND} -D CXX=${CMAKE_CXX_COMPILER} -D LORA_INCLUDE=${PROJECT_SOURCE_DIR}/include -D
        "INCLUDES=$<TARGET_PROPERTY:Eigen3::Eigen,INTERFACE_INCLUDE_DIRECTORIES>" -D SHOULD_FAIL=${should_fail} -D
        "PATTERN=${pattern}" -D FILE=${file} -P ${LORA_COMPILE_FAIL_SCRIPT})
    set_tests_properties(CompileFail.${name}.${case} PROPERTIES LABELS compile_fail)
  endforeach()
endfunction()
