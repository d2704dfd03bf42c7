import os

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, get
from conan.tools.layout import basic_layout

required_conan_version = ">=2.0"


class LoraConan(ConanFile):
    name = "lora"
    description = "Low-rank adaptation (LoRA) on Eigen, header-only"
    license = "MIT"
    url = "https://github.com/conan-io/conan-center-index"
    homepage = "https://github.com/OWNER/lora"
    topics = ("lora", "peft", "fine-tuning", "eigen", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_io": [True, False]}
    default_options = {"with_io": True}
    no_copy_source = True

    def layout(self):
        basic_layout(self, src_folder="src")

    def requirements(self):
        self.requires("eigen/3.4.0", transitive_headers=True)
        if self.options.with_io:
            self.requires("nlohmann_json/3.11.3", transitive_headers=True)

    def package_id(self):
        self.info.clear()

    def validate(self):
        check_min_cppstd(self, 20)

    def source(self):
        get(self, **self.conan_data["sources"][self.version], strip_root=True)

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        include = os.path.join(self.source_folder, "include")
        for pattern in ("*.hpp", "*.inc"):
            copy(self, pattern, include, os.path.join(self.package_folder, "include"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "lora")
        # Not lora::lora, which would then link io as well.
        self.cpp_info.set_property("cmake_target_name", "lora::all")
        library = self.cpp_info.components["core"]
        library.set_property("cmake_target_name", "lora::lora")
        library.set_property("pkg_config_name", "lora")
        library.requires = ["eigen::eigen"]
        library.bindirs = []
        library.libdirs = []
        if self.options.with_io:
            io = self.cpp_info.components["io"]
            io.set_property("cmake_target_name", "lora::io")
            io.set_property("pkg_config_name", "lora-io")
            io.requires = ["core", "nlohmann_json::nlohmann_json"]
            io.bindirs = []
            io.libdirs = []
