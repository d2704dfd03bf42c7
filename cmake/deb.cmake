# `cpack` in the build folder writes liblora-dev_<version>_all.deb: what `cmake --install` installs, and the copyright
# where Debian looks for it. `-D CPACK_PACKAGE_CONTACT="name <address>"` names the maintainer.
set(CPACK_GENERATOR DEB)
set(CPACK_DEBIAN_PACKAGE_NAME liblora-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libeigen3-dev (>= ${LORA_EIGEN_MINIMUM})")
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS nlohmann-json3-dev)
if(LORA_MPI)
  set(CPACK_DEBIAN_PACKAGE_SUGGESTS libopenmpi-dev)
endif()
if(NOT CPACK_PACKAGE_CONTACT)
  set(CPACK_PACKAGE_CONTACT "The lora authors <lora@example.org>")
endif()
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)

install(
  FILES ${PROJECT_SOURCE_DIR}/LICENSE
  DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/liblora-dev
  RENAME copyright
  COMPONENT debian
  EXCLUDE_FROM_ALL)
set(CPACK_INSTALL_CMAKE_PROJECTS "${PROJECT_BINARY_DIR};lora;ALL;/;${PROJECT_BINARY_DIR};lora;debian;/")
include(CPack)
