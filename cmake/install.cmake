# Headers, licence, the CMake package and pkg-config's files. All of these are independent of the architecture, hence
# below share/. The compiled library is a separate install component: `cmake --install build --component compiled`, once
# it is built.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/lora)

install(
  DIRECTORY ${PROJECT_SOURCE_DIR}/include/
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING
  PATTERN "*.hpp"
  PATTERN "*.inc")
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/lora)

# Separate export sets: a user without a JSON parser or MPI never loads the targets that need them.
set(export_sets lora-targets lora-io-targets)
install(TARGETS lora EXPORT lora-targets INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS lora_io EXPORT lora-io-targets)
if(LORA_MPI)
  list(APPEND export_sets lora-mpi-targets)
  install(TARGETS lora_mpi EXPORT lora-mpi-targets)
endif()
install(
  TARGETS lora_compiled
  EXPORT lora-compiled-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT compiled EXCLUDE_FROM_ALL
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT compiled EXCLUDE_FROM_ALL
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT compiled EXCLUDE_FROM_ALL)
install(
  EXPORT lora-compiled-targets
  NAMESPACE lora::
  DESTINATION ${package_dir}
  COMPONENT compiled
  EXCLUDE_FROM_ALL)
foreach(set IN LISTS export_sets)
  install(
    EXPORT ${set}
    NAMESPACE lora::
    DESTINATION ${package_dir})
endforeach()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/lora-config.cmake.in
                              ${PROJECT_BINARY_DIR}/package/lora-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/package/lora-config-version.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/package/lora-config.cmake ${PROJECT_BINARY_DIR}/package/lora-config-version.cmake
              ${PROJECT_SOURCE_DIR}/cmake/eigen.cmake ${PROJECT_SOURCE_DIR}/cmake/mpi.cmake DESTINATION ${package_dir})

# pkg-config finds the headers from the place of its own file, so an installation can be moved.
file(RELATIVE_PATH pkgconfig_includedir ${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig ${CMAKE_INSTALL_FULL_INCLUDEDIR})
foreach(name IN ITEMS lora lora-io)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/package/${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/package/${name}.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
endforeach()

# The bill of materials. SOURCE_DATE_EPOCH fixes its date.
string(TIMESTAMP sbom_created "%Y-%m-%dT%H:%M:%SZ" UTC)
configure_file(${PROJECT_SOURCE_DIR}/cmake/lora.spdx.json.in ${PROJECT_BINARY_DIR}/package/lora.spdx.json @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/lora.spdx.json DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/lora)

if(PROJECT_IS_TOP_LEVEL)
  include(cmake/deb.cmake)
endif()
