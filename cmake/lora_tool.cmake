# build/bin/lora, the tool in examples/tools, which tests and examples both use. Its target lora_tool_commands is all of
# it but main().
function(lora_add_tool)
  if(TARGET lora_tool)
    return()
  endif()
  lora_require(nlohmann_json nlohmann_json::nlohmann_json nlohmann-json3-dev)
  lora_require(CLI11 CLI11::CLI11 libcli11-dev)
  set(folder ${PROJECT_SOURCE_DIR}/examples/tools)
  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.cpp)
  list(REMOVE_ITEM sources ${folder}/main.cpp)
  add_library(lora_tool_commands STATIC ${sources})
  target_include_directories(lora_tool_commands PRIVATE ${PROJECT_SOURCE_DIR}/examples)
  target_link_libraries(
    lora_tool_commands
    PRIVATE lora_development
    PUBLIC lora::io lora::compiled CLI11::CLI11)
  # What several commands instantiate is compiled once.
  set_target_properties(
    lora_tool_commands
    PROPERTIES CXX_STANDARD 20
               CXX_STANDARD_REQUIRED ON
               CXX_EXTENSIONS OFF
               UNITY_BUILD ON
               UNITY_BUILD_BATCH_SIZE 4)
  lora_add_program(lora_tool lora bin ${folder}/main.cpp)
  target_link_libraries(lora_tool PRIVATE lora_tool_commands)
endfunction()
