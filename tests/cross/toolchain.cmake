# Compiles for another processor with Debian's cross compiler, and runs programs with qemu-user. tests/cross/run.sh gives
# LORA_TRIPLET, LORA_QEMU and LORA_SYSROOT, which has the libraries of the tests.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES LORA_TRIPLET LORA_QEMU LORA_SYSROOT)
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${LORA_TRIPLET}")
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_CXX_COMPILER ${LORA_TRIPLET}-g++)
set(CMAKE_C_COMPILER ${LORA_TRIPLET}-gcc)
# 32-bit ARM: notes on how g++ 6 passed arguments.
set(CMAKE_CXX_FLAGS_INIT -Wno-psabi)
set(CMAKE_LIBRARY_ARCHITECTURE ${LORA_TRIPLET})

set(CMAKE_FIND_ROOT_PATH ${LORA_SYSROOT} /usr/${LORA_TRIPLET})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
foreach(kind IN ITEMS LIBRARY INCLUDE PACKAGE)
  set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
endforeach()
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-rpath-link,${LORA_SYSROOT}/usr/lib/${LORA_TRIPLET}")

set(CMAKE_CROSSCOMPILING_EMULATOR ${LORA_QEMU} -L /usr/${LORA_TRIPLET} -E
                                  LD_LIBRARY_PATH=${LORA_SYSROOT}/usr/lib/${LORA_TRIPLET})
