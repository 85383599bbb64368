module fastregistry

go 1.24.0
