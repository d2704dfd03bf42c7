# Builds a small project that uses lora the way CASE names, and checks what reaches it.
# Arguments: CASE SOURCE_DIR BUILD_DIR WORK_DIR STAGE CXX GENERATOR EIGEN_INCLUDE VERSION
cmake_minimum_required(VERSION 3.22)

function(run_or_fail what)
  execute_process(
    COMMAND ${ARGN}
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed:\n${output}")
  endif()
endfunction()

function(configure project result_variable output_variable)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/${project} -B ${WORK_DIR}/build -G ${GENERATOR} -D
            CMAKE_CXX_COMPILER=${CXX} -D CMAKE_EXPORT_COMPILE_COMMANDS=ON -D CMAKE_PREFIX_PATH=${STAGE} ${ARGN}
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  set(${result_variable} ${result} PARENT_SCOPE)
  # CMake breaks its messages into lines; one blank between words makes them searchable.
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  set(${output_variable} "${output}" PARENT_SCOPE)
endfunction()

function(configure_or_fail project)
  configure(${project} result output ${ARGN})
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "the consumer does not configure:\n${output}")
  endif()
endfunction()

# Expects that configuring is refused with a message that holds `text`.
function(configure_is_refused project text)
  configure(${project} result output ${ARGN})
  string(FIND "${output}" "${text}" position)
  if(result EQUAL 0)
    message(FATAL_ERROR "the consumer configures, and must not:\n${output}")
  elseif(position EQUAL -1)
    message(FATAL_ERROR "the consumer is refused without '${text}':\n${output}")
  endif()
endfunction()

function(build_and_run)
  run_or_fail("building the consumer" ${CMAKE_COMMAND} --build ${WORK_DIR}/build --config Release)
  run_or_fail("running the consumer" ${CMAKE_COMMAND} -E chdir ${WORK_DIR}/build ./consumer)
  check_command_lines()
endfunction()

# Compiles without CMake: compile_and_run(<compiler's arguments>...)
function(compile_and_run)
  run_or_fail("compiling without CMake" ${CXX} -std=c++20 ${ARGN} -o ${WORK_DIR}/consumer)
  run_or_fail("running the consumer" ${CMAKE_COMMAND} -E chdir ${WORK_DIR} ./consumer)
endfunction()

# Expects that `program`, built from version_main.cpp, found the headers of this version.
function(check_version program)
  execute_process(
    COMMAND ${program}
    OUTPUT_VARIABLE output
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT output STREQUAL VERSION)
    message(FATAL_ERROR "${program} says '${output}', expected ${VERSION}")
  endif()
endfunction()

# pkg_config(<variable> <argument>...): what pkg-config says of the packages below STAGE, as a list.
function(pkg_config result)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${STAGE}/share/pkgconfig pkg-config ${ARGN}
    OUTPUT_VARIABLE output
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(output UNIX_COMMAND "${output}")
  set(${result} "${output}" PARENT_SCOPE)
endfunction()

# Finds the library below STAGE with pkg-config alone.
function(check_pkg_config)
  foreach(package IN ITEMS lora lora-io)
    pkg_config(version --modversion ${package})
    if(NOT version STREQUAL VERSION)
      message(FATAL_ERROR "${package}.pc is of version '${version}', expected ${VERSION}")
    endif()
    pkg_config(flags_of_${package} --cflags ${package})
    string(FIND "${flags_of_${package}}" "-I${STAGE}/" position)
    if(position EQUAL -1)
      message(FATAL_ERROR "${package}.pc does not lead to the headers below ${STAGE}: ${flags_of_${package}}")
    endif()
  endforeach()
  compile_and_run(${flags_of_lora} ${CMAKE_CURRENT_LIST_DIR}/version_main.cpp)
  check_version(${WORK_DIR}/consumer)
endfunction()

# check_field(<package file> <field> <regular expression>)
function(check_field package field expected)
  execute_process(
    COMMAND dpkg-deb --field ${package} ${field}
    OUTPUT_VARIABLE value
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT value MATCHES "^(${expected})$")
    message(FATAL_ERROR "${package}: ${field} is '${value}', expected '${expected}'")
  endif()
endfunction()

# check_stated_version(<file> <regular expression with the version as its group>): the file states this version, once.
function(check_stated_version path pattern)
  file(READ ${SOURCE_DIR}/${path} text)
  string(REGEX MATCHALL "${pattern}" matches "${text}")
  list(LENGTH matches count)
  if(NOT count EQUAL 1)
    message(FATAL_ERROR "${path}: expected one match of '${pattern}', found ${count}")
  endif()
  string(REGEX MATCH "${pattern}" matches "${text}")
  if(NOT CMAKE_MATCH_1 STREQUAL VERSION)
    message(FATAL_ERROR "${path} says version ${CMAKE_MATCH_1}, include/lora/core/version.hpp ${VERSION}")
  endif()
endfunction()

# The README's block of CMake that holds `text`.
function(read_readme_block text result)
  file(READ ${SOURCE_DIR}/README.md rest)
  while(TRUE)
    string(FIND "${rest}" "\n```cmake\n" begin)
    if(begin EQUAL -1)
      message(FATAL_ERROR "README.md has no block of CMake with '${text}'")
    endif()
    math(EXPR begin "${begin} + 10")
    string(SUBSTRING "${rest}" ${begin} -1 rest)
    string(FIND "${rest}" "\n```" length)
    string(SUBSTRING "${rest}" 0 ${length} block)
    string(FIND "${block}" "${text}" position)
    if(NOT position EQUAL -1)
      set(${result} "${block}\n" PARENT_SCOPE)
      return()
    endif()
  endwhile()
endfunction()

# No warning, instruction set, sanitizer or optimisation level reaches a user.
function(check_command_lines)
  if(NOT EXISTS ${WORK_DIR}/build/compile_commands.json)
    message(FATAL_ERROR "no compile_commands.json to look at")
  endif()
  file(READ ${WORK_DIR}/build/compile_commands.json commands)
  string(FIND "${commands}" "main.cpp" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "compile_commands.json does not name the consumer's source")
  endif()
  # The library's own sources, which a build below the consumer's lists too.
  string(REGEX REPLACE "\"command\": \"[^\"]*lora_compiled[.]dir[^\"]*\"" "" commands "${commands}")
  if(CASE STREQUAL "installed_compiled")
    string(REPLACE " -DLORA_COMPILED " " " commands "${commands}")
  endif()
  if(commands MATCHES " (-W[^ ]*|-m[^ ]*|-f[^ ]*|-O[^ ]*|-g[^ ]*|-D[^ ]*)")
    message(FATAL_ERROR "the flag '${CMAKE_MATCH_1}' reaches the user:\n${commands}")
  endif()
endfunction()

# An Eigen package that says it is of `version` and accepts no request for another major version.
function(write_eigen_package version)
  string(REGEX MATCH "^[0-9]+" major ${version})
  file(WRITE ${WORK_DIR}/eigen-${version}/Eigen3ConfigVersion.cmake
       "set(PACKAGE_VERSION ${version})\n"
       "if(NOT PACKAGE_FIND_VERSION OR PACKAGE_FIND_VERSION_MAJOR EQUAL ${major})\n"
       "  set(PACKAGE_VERSION_COMPATIBLE TRUE)\nendif()\n")
  file(WRITE ${WORK_DIR}/eigen-${version}/Eigen3Config.cmake
       "add_library(Eigen3::Eigen INTERFACE IMPORTED)\n"
       "target_include_directories(Eigen3::Eigen INTERFACE ${EIGEN_INCLUDE})\n")
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})

if(CASE STREQUAL "stage")
  file(REMOVE_RECURSE ${STAGE})
  run_or_fail("installing lora" ${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${STAGE})
  # The headers alone, then with the compiled library, which only those have who ask for it.
  configure_is_refused(installed "lora was installed without its component compiled" -D COMPONENTS=compiled)
  run_or_fail("installing lora::compiled" ${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${STAGE} --component compiled)
elseif(CASE STREQUAL "installed")
  # Without a JSON parser, which lora::lora does not need.
  configure_or_fail(installed -D CMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
  build_and_run()
  configure_is_refused(installed "lora's component io needs nlohmann_json" -D COMPONENTS=io)
elseif(CASE STREQUAL "installed_compiled")
  configure_or_fail(installed -D COMPONENTS=compiled)
  build_and_run()
  foreach(program IN ITEMS consumer header_only)
    execute_process(COMMAND ${WORK_DIR}/build/${program} OUTPUT_VARIABLE bits_of_${program} COMMAND_ERROR_IS_FATAL ANY)
  endforeach()
  if(NOT bits_of_consumer STREQUAL bits_of_header_only)
    message(FATAL_ERROR "compiled:\n${bits_of_consumer}header-only:\n${bits_of_header_only}")
  endif()
  # Eigen frees memory in another way under -mavx: the linker refuses what would crash.
  execute_process(COMMAND ${CXX} -dumpmachine OUTPUT_VARIABLE machine)
  if(machine MATCHES "x86_64")
    file(WRITE ${WORK_DIR}/mismatch.cpp "#include <lora/core/types.hpp>\nint main() {}\n")
    file(GLOB_RECURSE library ${STAGE}/*lora.a)
    set(command ${CXX} -std=c++20 -DLORA_COMPILED -I${STAGE}/include)
    foreach(directory IN LISTS EIGEN_INCLUDE)
      list(APPEND command -I${directory})
    endforeach()
    list(APPEND command ${WORK_DIR}/mismatch.cpp ${library} -o ${WORK_DIR}/mismatch)
    run_or_fail("linking lora::compiled" ${command})
    execute_process(COMMAND ${command} -mavx RESULT_VARIABLE result ERROR_VARIABLE output)
    if(result EQUAL 0 OR NOT output MATCHES "compiled_for_this_eigen")
      message(FATAL_ERROR "a program of another alignment links:\n${output}")
    endif()
  endif()
elseif(CASE STREQUAL "installed_io")
  configure_or_fail(installed -D COMPONENTS=io)
  build_and_run()
elseif(CASE STREQUAL "installed_without_mpi")
  configure_or_fail(installed -D CMAKE_DISABLE_FIND_PACKAGE_MPI=ON)
  configure_is_refused(installed "lora's component mpi needs MPI" -D COMPONENTS=mpi -D
                       CMAKE_DISABLE_FIND_PACKAGE_MPI=ON)
elseif(CASE STREQUAL "installed_mpi")
  configure_or_fail(installed -D COMPONENTS=mpi)
  build_and_run()
elseif(CASE STREQUAL "subdirectory")
  configure_or_fail(subdirectory -D LORA_SOURCE_DIR=${SOURCE_DIR})
  build_and_run()
elseif(CASE STREQUAL "subdirectory_mpi")
  configure_or_fail(subdirectory -D LORA_SOURCE_DIR=${SOURCE_DIR} -D LORA_MPI=ON)
  build_and_run()
elseif(CASE STREQUAL "eigen_versions")
  foreach(version IN ITEMS 3.4.90 5.0.1)
    write_eigen_package(${version})
    configure_or_fail(installed --fresh -D Eigen3_DIR=${WORK_DIR}/eigen-${version})
    configure_or_fail(subdirectory --fresh -D LORA_SOURCE_DIR=${SOURCE_DIR} -D Eigen3_DIR=${WORK_DIR}/eigen-${version})
  endforeach()
  write_eigen_package(3.3.9)
  set(message "lora needs Eigen 3.4 or newer, and ${WORK_DIR}/eigen-3.3.9 holds 3.3.9")
  configure_is_refused(installed "${message}" --fresh -D Eigen3_DIR=${WORK_DIR}/eigen-3.3.9)
  configure_is_refused(subdirectory "${message}" --fresh -D LORA_SOURCE_DIR=${SOURCE_DIR} -D
                       Eigen3_DIR=${WORK_DIR}/eigen-3.3.9)
  set(message "lora needs Eigen 3.4 or newer and found none")
  configure_is_refused(installed "${message}" --fresh -D CMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON)
elseif(CASE STREQUAL "wrong_version")
  # A minor version may break the interface while the major one is 0.
  string(REPLACE "." ";" numbers ${VERSION})
  list(GET numbers 0 major)
  list(GET numbers 1 minor)
  list(GET numbers 2 patch)
  foreach(accepted IN ITEMS ${major}.${minor} ${VERSION})
    configure_or_fail(installed -D SOURCE=version_main -D VERSION=${accepted})
  endforeach()
  set(refused 99.0)
  foreach(step IN ITEMS -1 1)
    foreach(number IN ITEMS major minor)
      math(EXPR other_${number} "${${number}} + ${step}")
    endforeach()
    list(APPEND refused ${other_major}.${minor} ${major}.${other_minor})
  endforeach()
  math(EXPR patch "${patch} + 1")
  list(APPEND refused ${major}.${minor}.${patch})
  # There is no version below 0.
  list(FILTER refused EXCLUDE REGEX "-")
  foreach(version IN LISTS refused)
    configure_is_refused(installed "compatible with requested version \"${version}\"" -D SOURCE=version_main -D
                         VERSION=${version})
  endforeach()
elseif(CASE STREQUAL "versions")
  check_stated_version(README.md "GIT_TAG v([0-9.]+)")
  check_stated_version(CITATION.cff "\nversion: ([0-9.]+)\n")
  check_stated_version(packaging/vcpkg/vcpkg.json "\"version\": \"([0-9.]+)\"")
  check_stated_version(packaging/conan/conandata.yml "\"([0-9.]+)\":\n")
elseif(CASE STREQUAL "fetch_content")
  read_readme_block(FetchContent_Declare block)
  file(WRITE ${WORK_DIR}/readme.cmake "${block}")
  configure_or_fail(fetch_content -D SNIPPET=${WORK_DIR}/readme.cmake -D FETCHCONTENT_SOURCE_DIR_LORA=${SOURCE_DIR})
  build_and_run()
  check_version(${WORK_DIR}/build/consumer)
elseif(CASE STREQUAL "pkg_config")
  check_pkg_config()
elseif(CASE STREQUAL "deb")
  get_filename_component(programs ${CMAKE_COMMAND} DIRECTORY)
  run_or_fail("making the package" ${programs}/cpack --config ${BUILD_DIR}/CPackConfig.cmake -B ${WORK_DIR}/deb)
  set(package ${WORK_DIR}/deb/liblora-dev_${VERSION}_all.deb)
  check_field(${package} Architecture all)
  check_field(${package} Version "${VERSION}")
  check_field(${package} Depends "libeigen3-dev [(]>= 3.4[)]")
  check_field(${package} Recommends nlohmann-json3-dev)
  run_or_fail("unpacking the package" dpkg-deb --extract ${package} ${WORK_DIR}/root)
  if(NOT EXISTS ${WORK_DIR}/root/usr/share/doc/liblora-dev/copyright)
    message(FATAL_ERROR "the package has no copyright file")
  endif()
  set(STAGE ${WORK_DIR}/root/usr)
  configure_or_fail(installed -D SOURCE=version_main -D VERSION=${VERSION})
  build_and_run()
  check_version(${WORK_DIR}/build/consumer)
  check_pkg_config()
elseif(CASE STREQUAL "single_header")
  # In the place of the headers they hold, so that programs need no change.
  configure_file(${BUILD_DIR}/single_header/lora.hpp ${WORK_DIR}/include/lora/lora.hpp COPYONLY)
  configure_file(${BUILD_DIR}/single_header/lora_all.hpp ${WORK_DIR}/include/lora/io.hpp COPYONLY)
  list(TRANSFORM EIGEN_INCLUDE PREPEND -I OUTPUT_VARIABLE includes)
  list(APPEND includes -I${WORK_DIR}/include)
  run_or_fail("compiling the second translation unit" ${CXX} -std=c++20 -Dmain=other_main ${includes} -c
              ${CMAKE_CURRENT_LIST_DIR}/io_main.cpp -o ${WORK_DIR}/other.o)
  compile_and_run(${includes} ${CMAKE_CURRENT_LIST_DIR}/main.cpp ${WORK_DIR}/other.o)
  # What is first included below an #if is there without it.
  run_or_fail("compiling declarations alone" ${CXX} -std=c++20 -fsyntax-only -DLORA_COMPILED ${includes}
              ${CMAKE_CURRENT_LIST_DIR}/main.cpp)
elseif(CASE STREQUAL "plain_compiler")
  list(TRANSFORM EIGEN_INCLUDE PREPEND -I OUTPUT_VARIABLE includes)
  compile_and_run(-I${SOURCE_DIR}/include ${includes} ${CMAKE_CURRENT_LIST_DIR}/main.cpp)
else()
  message(FATAL_ERROR "no case '${CASE}'")
endif()
