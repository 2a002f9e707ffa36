// Import a folder of GeoJSON that `cytofm export --to geojson` wrote into the open QuPath project.
//
// Open the project, then Automate > Script editor, and Run (not "Run for project": it goes through
// the images itself). Without QuPath's window:
//   QuPath script --project=project.qpproj --args=FOLDER import_folder.groovy
// The folder is the first argument, else `nuclei` in the project's folder. A file belongs to the
// image of its name: slide.geojson to slide.svs, slide.svs.geojson too. Objects of an earlier import
// are replaced (their ids are the same); everything else stays. Needs QuPath 0.4 or later.

import qupath.lib.io.PathIO

def given = binding.hasVariable('args') && args ? args[0] : buildFilePath(PROJECT_BASE_DIR, 'nuclei')
def folder = new File(given as String)
if (!folder.isDirectory())
    throw new IllegalArgumentException("No such folder: ${folder}")

def unused = folder.listFiles().findAll { it.name.endsWith('.geojson') } as Set
for (entry in getProject().getImageList()) {
    def name = entry.getImageName()
    def picture = name.split(' - ')[0]                       // "slide.scn - image 2"
    def stem = picture.replaceFirst(/(\.ome)?\.[A-Za-z]\w{1,7}$/, '')
    def file = [name, picture, stem].collect { new File(folder, it + '.geojson') }.find { it.isFile() }
    if (file == null) {
        println "${name}: no file"
        continue
    }
    unused.remove(file)
    def objects = PathIO.readObjects(file)
    def ids = objects.collect { it.getID() } as Set
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    hierarchy.removeObjects(hierarchy.getDetectionObjects().findAll { it.getID() in ids }, true)
    hierarchy.addObjects(objects)
    entry.saveImageData(imageData)
    println "${name}: ${objects.size()} nuclei from ${file.name}"
}
unused.each { println "${it.name}: no image of that name" }
println 'Open an image again to see its nuclei.'
