# Tests that a static assertion or constraint rejects what it should.
#
# lora_add_compile_fail_tests(<file>...): with LORA_SHOULD_FAIL defined, a file must not compile, and the compiler must
# print text that matches the regular expression in its line `// expect: <regular expression>`. Without it, the file
# must compile, which proves that nothing else in it is wrong: the test CompileFail.Twins compiles all of them
# together, each in a namespace.
#
# This file is also the script that those tests run, with COMMAND (the compiler's command up to the file), FILE, and
# PATTERN for a file that must not compile.

if(CMAKE_SCRIPT_MODE_FILE)
  execute_process(
    COMMAND ${COMMAND} ${FILE}
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  if(NOT PATTERN)
    if(NOT result EQUAL 0)
      message(FATAL_ERROR "a file does not compile without LORA_SHOULD_FAIL:\n${output}")
    endif()
  elseif(result EQUAL 0)
    message(FATAL_ERROR "${FILE} compiles with LORA_SHOULD_FAIL, and must not")
  elseif(NOT output MATCHES "${PATTERN}")
    message(FATAL_ERROR "${FILE} is refused, but without a message that matches '${PATTERN}':\n${output}")
  endif()
  return()
endif()

set(LORA_COMPILE_FAIL_SCRIPT ${CMAKE_CURRENT_LIST_FILE})

function(lora_add_compile_fail_tests)
  lora_syntax_command(command)
  lora_add_syntax_precompiled(precompiled)
  # Declarations are enough: they contain the static assertions, and less is compiled.
  list(APPEND command -DLORA_COMPILED -include ${precompiled})
  set(twins "")
  foreach(file IN LISTS ARGN)
    get_filename_component(name ${file} NAME_WE)
    file(STRINGS ${file} expectation REGEX "^// expect: ." LIMIT_COUNT 1)
    if(NOT expectation)
      message(FATAL_ERROR "${file}: no line '// expect: <regular expression of the message>'")
    endif()
    string(REGEX REPLACE "^// expect: " "" expectation "${expectation}")
    # Each file gets its own namespace, since the files use the same names; their includes come first.
    file(STRINGS ${file} includes REGEX "^#include ")
    foreach(line IN LISTS includes)
      list(APPEND twin_includes "${line}")
    endforeach()
    string(APPEND twins "namespace ${name} {\n#include \"${file}\"\n}\n")
    add_test(NAME CompileFail.${name} COMMAND ${CMAKE_COMMAND} -D "COMMAND=${command};-DLORA_SHOULD_FAIL" -D
                                              "PATTERN=${expectation}" -D FILE=${file} -P ${LORA_COMPILE_FAIL_SCRIPT})
    set_tests_properties(CompileFail.${name} PROPERTIES LABELS compile_fail)
  endforeach()
  list(REMOVE_DUPLICATES twin_includes)
  list(JOIN twin_includes "\n" twin_includes)
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/compile_fail/twins.cpp)
  lora_write_if_different(${unit} "${twin_includes}\n${twins}")
  add_test(NAME CompileFail.Twins COMMAND ${CMAKE_COMMAND} -D "COMMAND=${command}" -D FILE=${unit} -P
                                          ${LORA_COMPILE_FAIL_SCRIPT})
  set_tests_properties(CompileFail.Twins PROPERTIES LABELS compile_fail)
  lora_folder_needs(compile_fail lora_syntax_precompiled)
endfunction()
