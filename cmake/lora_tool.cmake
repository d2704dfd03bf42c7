# build/bin/lora, the tool in examples/tools, which tests and examples both use.
function(lora_add_tool)
  if(TARGET lora_tool)
    return()
  endif()
  lora_require(nlohmann_json nlohmann_json::nlohmann_json nlohmann-json3-dev)
  lora_require(CLI11 CLI11::CLI11 libcli11-dev)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/tools/*.cpp)
  lora_add_program(lora_tool lora bin ${sources})
  target_link_libraries(lora_tool PRIVATE lora::io lora::compiled CLI11::CLI11)
  # What several commands instantiate is compiled once.
  set_target_properties(lora_tool PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 4)
endfunction()
