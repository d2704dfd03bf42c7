# The site of documentation: the reference of the public headers (docs/Doxyfile) and docs/guide. Every warning of
# Doxygen is an error. docs/run.sh installs what is missing and builds it.

# lora_add_docs(): the target lora_docs writes <build>/site/html.
function(lora_add_docs)
  find_program(LORA_DOXYGEN doxygen)
  find_path(LORA_MATHJAX MathJax.js PATHS /usr/share/javascript/mathjax)
  if(NOT LORA_DOXYGEN OR NOT LORA_MATHJAX)
    message(FATAL_ERROR "LORA_BUILD_DOCS needs Doxygen and MathJax 2 (Debian: doxygen libjs-mathjax)")
  endif()
  set(site ${PROJECT_BINARY_DIR}/site)
  file(
    WRITE ${site}/Doxyfile
    "@INCLUDE = docs/Doxyfile\n"
    "PROJECT_NUMBER = ${PROJECT_VERSION}\n"
    "OUTPUT_DIRECTORY = \"${site}\"\n")
  # The site carries the part of MathJax that its pages load, so that it can be copied anywhere.
  set(mathjax ${site}/html/mathjax)
  set(copies "")
  foreach(part IN ITEMS extensions jax/element jax/input/TeX jax/output/HTML-CSS fonts/HTML-CSS/TeX)
    list(APPEND copies COMMAND ${CMAKE_COMMAND} -E copy_directory ${LORA_MATHJAX}/${part} ${mathjax}/${part})
  endforeach()
  add_custom_target(
    lora_docs
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${site}/html
    COMMAND ${LORA_DOXYGEN} ${site}/Doxyfile
    COMMAND ${CMAKE_COMMAND} -E copy ${LORA_MATHJAX}/MathJax.js ${mathjax}/MathJax.js
    ${copies}
    COMMAND ${CMAKE_COMMAND} -E echo "${site}/html/index.html"
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    VERBATIM)
endfunction()
