// Program kubernetes reads Kubernetes objects in YAML from standard input and reports fields that do not exist or have
// a wrong type, by decoding each object strictly into the type of its kind.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

var kinds = map[string]func() any{
	"apps/v1 Deployment":                 func() any { return new(appsv1.Deployment) },
	"batch/v1 CronJob":                   func() any { return new(batchv1.CronJob) },
	"batch/v1 Job":                       func() any { return new(batchv1.Job) },
	"v1 ConfigMap":                       func() any { return new(corev1.ConfigMap) },
	"v1 PersistentVolumeClaim":           func() any { return new(corev1.PersistentVolumeClaim) },
	"v1 Service":                         func() any { return new(corev1.Service) },
	"v1 ServiceAccount":                  func() any { return new(corev1.ServiceAccount) },
	"networking.k8s.io/v1 NetworkPolicy": func() any { return new(networkingv1.NetworkPolicy) },
}

func main() {
	reader := kubeyaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = check(document)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// check decodes one object. It prints the kind, or the reason why the object is not checked.
func check(document []byte) error {
	var about metav1.TypeMeta
	if err := yaml.Unmarshal(document, &about); err != nil {
		return err
	}
	kind := about.APIVersion + " " + about.Kind
	create, known := kinds[kind]
	if !known {
		fmt.Println("not checked:", kind)
		return nil
	}
	if err := yaml.UnmarshalStrict(document, create()); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	fmt.Println(kind)
	return nil
}
