# lora::compiled: what the headers declare with LORA_COMPILED, compiled once (src/README.md). Static unless
# BUILD_SHARED_LIBS says otherwise. Without LORA_BUILD_COMPILED it is built only when something links it.
add_library(lora_compiled)
add_library(lora::compiled ALIAS lora_compiled)
file(GLOB compiled_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*.cpp)
target_sources(lora_compiled PRIVATE ${compiled_sources})
target_link_libraries(lora_compiled PUBLIC lora)
target_compile_definitions(lora_compiled PUBLIC LORA_COMPILED)
set_target_properties(
  lora_compiled
  PROPERTIES EXPORT_NAME compiled
             OUTPUT_NAME lora
             CXX_EXTENSIONS OFF
             POSITION_INDEPENDENT_CODE ON)
if(NOT LORA_BUILD_COMPILED)
  set_target_properties(lora_compiled PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
