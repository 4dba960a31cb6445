package kvstorev1

import (
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
)

// The Go beside the .proto must be what the .proto says: a change of one without the other shows here.
func TestGenerated_IsWhatTheProtoSays(t *testing.T) {
	c := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{})}
	files, err := c.Compile(t.Context(), "kvstore.proto")
	if err != nil {
		t.Fatal(err)
	}
	source, generated := protodesc.ToFileDescriptorProto(files[0]), protodesc.ToFileDescriptorProto(File_kvstorev1_kvstore_proto)
	for _, d := range []*descriptorpb.FileDescriptorProto{source, generated} {
		d.Name, d.SourceCodeInfo = nil, nil // where it lies, and its comments
	}
	if !proto.Equal(source, generated) {
		t.Error("kvstore.pb.go is not generated from kvstore.proto as it is: make proto")
	}
}
